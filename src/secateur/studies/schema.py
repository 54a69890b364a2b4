"""The study file as strict types. Each field's description is its documentation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from secateur.pipeline.recipe import Named, NamedOrText, Spec

DENSE, MAGNITUDE, RANDOM_TOKENS = "dense", "magnitude", "random tokens"
COLUMNS = ("cell", "seed", "control", "status", "error", "metric", "value", "set_digest", "pruned_digest")
COLUMNS += ("evaluation_digest", "seconds", "peak_gib", "sparsity_reached")
"""Of the table of results, beside one for each axis."""
Control = Literal["dense", "magnitude", "random tokens"]


class AxisSpec(Spec):
    """One axis as it is resolved: by label, the recipe fields it sets. In a file it may also be ``{path, values}``."""

    labels: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _either_form(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value:
            raise ValueError("an axis is {path: FIELD, values: [...]} or {LABEL: {FIELD: value, ...}, ...}.")
        if set(value) == {"path", "values"}:
            return {"labels": _listed(value["path"], value["values"])}
        for label, fields in value.items():
            if not isinstance(fields, dict):
                raise ValueError(
                    f"the label {label!r} must set recipe fields, as in {{pruning.sparsity: 0.5}}; found {fields!r}."
                )
        return {"labels": value}

    @property
    def numbers(self) -> list[float] | None:
        """The labels as numbers, if they all are."""
        try:
            return [float(label) for label in self.labels]
        except ValueError:
            return None


def _listed(path: Any, values: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(path, str) or not isinstance(values, list):
        raise ValueError(f"path is a recipe field and values a list; found {path!r} and {values!r}.")
    labels = [label_of(value) for value in values]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"the value {twice[0]} is there twice.")
    return {label: {path: value} for label, value in zip(labels, values, strict=True)}


def label_of(value: Any) -> str:
    """A value as the label of its cells: numbers as short as they are, named things by their name and settings."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        rest = [f"{key} {label_of(entry)}" for key, entry in value.items() if key != "name"]
        return " ".join([value["name"], *rest])
    if isinstance(value, list):
        return "+".join(map(label_of, value)) or "none"
    return str(value)


class StudySpec(Spec):
    """A question, and everything that decides how it is answered."""

    question: str = Field(min_length=1, description="what is asked, as a sentence")
    recipe: dict[str, Any] | str = Field(
        default_factory=dict, description="what all cells share: a recipe, its file, or the name of a bundled one"
    )
    axes: dict[str, AxisSpec] = Field(min_length=1, description="by name: labels, and the recipe fields each sets")
    repeats: list[int] = Field(description="the seeds, or how many; every cell is run with each, and seeds pair")
    controls: list[Control] = Field(
        default_factory=lambda: [DENSE, MAGNITUDE], description="dense, magnitude, random tokens"
    )
    exclude: list[dict[str, str | list[str]]] = Field(
        default_factory=list, description="cells to leave out: by axis a label, or a list of labels"
    )
    metric: str = Field(default="perplexity", description="the primary metric")
    metrics: list[str] = Field(default_factory=list, description="further ones to compare by")
    comparisons: list[NamedOrText] = Field(
        min_length=1, description="what is compared, the first being the primary one; see docs/studies.md"
    )
    keep: bool = Field(default=False, description="keep the pruned models; else each is deleted once it is evaluated")

    @field_validator("repeats", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = list(range(value))
        if not isinstance(value, list) or not value or len(set(map(repr, value))) < len(value):
            raise ValueError(f"repeats is a number of at least 1 or a list of different seeds; found {value!r}.")
        return value

    @field_validator("axes")
    @classmethod
    def _no_column(cls, value: dict[str, AxisSpec]) -> dict[str, AxisSpec]:
        taken = [name for name in value if name in COLUMNS]
        if taken:
            raise ValueError(f"the results have a column {taken[0]!r} of their own; give the axis another name.")
        return value

    @field_validator("exclude", mode="before")
    @classmethod
    def _as_labels(cls, value: Any) -> Any:
        """Labels may be written as the values they came from."""
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError(f"exclude is a list of partial cells such as {{source: prose}}; found {value!r}.")
        return [
            {
                axis: [label_of(one) for one in labels] if isinstance(labels, list) else label_of(labels)
                for axis, labels in entry.items()
            }
            for entry in value
        ]

    @field_validator("comparisons", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        """``kind`` is what others of a recipe call ``name``."""
        if not isinstance(value, list):
            raise ValueError(
                f"comparisons is a list such as [{{kind: difference, axis: source, ...}}]; found {value!r}."
            )
        return [
            {"name": entry["kind"], **{key: item for key, item in entry.items() if key != "kind"}}
            if isinstance(entry, dict) and "kind" in entry
            else entry
            for entry in value
        ]

    @property
    def all_metrics(self) -> list[str]:
        """The primary metric, then the further ones."""
        return list(dict.fromkeys([self.metric, *self.metrics]))

    @property
    def declared(self) -> list[dict[str, Any]]:
        """The comparisons as the file has them."""
        return [{"kind": one.name, **one.settings} for one in self.comparisons]


__all__ = ["AxisSpec", "Control", "Named", "StudySpec", "label_of"]
