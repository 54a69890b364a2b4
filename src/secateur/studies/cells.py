"""From axes, exclusions, repeats and controls to cells: labels, a seed, and the whole recipe of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from secateur.errors import RecipeError
from secateur.models.loading import pick_device, settled_dtype
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.recipe_file import assign, explain
from secateur.studies.schema import DENSE, MAGNITUDE, RANDOM_TOKENS
from secateur.studies.study_file import Study

SET_OF = "set of "
"""A value that begins so stands for the folder of another label's calibration set: ``{name: matched, to: set of self}``."""

CONTROLS: dict[str, dict[str, Any]] = {
    DENSE: {},
    MAGNITUDE: {"pruning.method": "magnitude", "pruning.allocation": "uniform", "pruning.permute": False},
    RANDOM_TOKENS: {
        "calibration.source": "random-tokens",
        "calibration.mixture": [],
        "calibration.filters": [],
        "calibration.selection": "random",
    },
}
"""What each control sets over a cell's recipe."""


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed. ``control``: which, or empty. ``needs``: the recipe of the calibration set that this cell's
    own set is chosen by, if one is."""

    labels: Mapping[str, str]
    seed: int
    recipe: Recipe
    control: str = ""
    needs: Recipe | None = None

    def said(self) -> str:
        parts = [f"{axis} {label}" for axis, label in self.labels.items() if label]
        return ", ".join([*([self.control] if self.control else []), *parts, f"seed {self.seed}"])


def expand(study: Study) -> Iterator[Cell]:
    """Every cell of the study with every seed, excluded ones left out, in the declared order; then the controls.

    Raises ``RecipeError`` when the exclusions leave nothing, or nothing of one label.
    """
    axes = {name: list(axis.labels) for name, axis in study.spec.axes.items()}
    combinations = [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())]
    kept = [labels for labels in combinations if not _excluded(study, labels)]
    place = study.place("exclude")
    if not kept:
        raise RecipeError(
            f"{place}: the exclusions leave none of the {len(combinations)} cells; take some of them out."
        )
    for axis, names in axes.items():
        gone = [name for name in names if not any(labels[axis] == name for labels in kept)]
        if gone:
            raise RecipeError(
                f"{place}: the exclusions leave no cell of {', '.join(map(repr, gone))} on axis {axis!r}; "
                "take that label out of the axis instead, or exclude less."
            )
    for control in ("", *study.spec.controls):
        for labels in kept:
            for seed in study.spec.repeats:
                yield _cell(study, labels, seed, control)


def excluded_cells(study: Study) -> int:
    """How many combinations of labels the exclusions take out."""
    axes = {name: list(axis.labels) for name, axis in study.spec.axes.items()}
    combinations = (dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values()))
    return sum(_excluded(study, labels) for labels in combinations)


def _excluded(study: Study, labels: Mapping[str, str]) -> bool:
    return any(
        all(labels[axis] in (named if isinstance(named, list) else [named]) for axis, named in entry.items())
        for entry in study.spec.exclude
    )


def _cell(study: Study, labels: Mapping[str, str], seed: int, control: str) -> Cell:
    plain, said = _assigned(study, labels, seed)
    for path, value in CONTROLS.get(control, {}).items():
        assign(plain, path, deepcopy(value))
    wanted = _referred(plain)
    needs = None
    if wanted is not None:
        needs = _needed(study, labels, seed, wanted, said)
        _set_reference(plain, "0" * 12)  # stands for the folder, which is not there yet
    return Cell(labels, seed, _recipe(plain, said), control, needs)


def _assigned(study: Study, labels: Mapping[str, str], seed: int) -> tuple[dict[str, Any], str]:
    plain = deepcopy(study.base)
    for axis, label in labels.items():
        for path, value in study.spec.axes[axis].labels[label].items():
            try:
                assign(plain, path, deepcopy(value))
            except RecipeError as error:
                raise RecipeError(f"{study.place(f'axes.{axis}')}: axis {axis!r}, label {label!r}: {error}") from error
    plain["seed"] = seed
    return plain, f"{study.where}, cell {', '.join(f'{axis} {label}' for axis, label in labels.items())}"


def _recipe(plain: dict[str, Any], said: str) -> Recipe:
    try:
        return _settled(Recipe.model_validate(plain))
    except ValidationError as error:
        raise RecipeError(explain(error, said, {})) from error


def _settled(recipe: Recipe) -> Recipe:
    """With the types that ``auto`` means here, so that every worker of a cluster computes in the same."""
    device, evaluation = pick_device(recipe.device), recipe.evaluation
    evaluation = evaluation.model_copy(update={"dtype": settled_dtype(evaluation.dtype, device)})
    return recipe.model_copy(update={"dtype": settled_dtype(recipe.dtype, device), "evaluation": evaluation})


def _referred(plain: Mapping[str, Any]) -> str | None:
    """The label whose set the recipe's selection is to be like."""
    selection = plain.get("calibration", {}).get("selection")
    value = selection.get("to") if isinstance(selection, Mapping) else None
    return value.removeprefix(SET_OF).strip() if isinstance(value, str) and value.startswith(SET_OF) else None


def _set_reference(plain: dict[str, Any], folder: str) -> None:
    plain["calibration"]["selection"]["to"] = folder


def _needed(study: Study, labels: Mapping[str, str], seed: int, wanted: str, said: str) -> Recipe:
    """The recipe of the cell that differs in one label: the one that is wanted."""
    found = [axis for axis, spec in study.spec.axes.items() if wanted in spec.labels]
    if not found:
        known = [label for spec in study.spec.axes.values() for label in spec.labels]
        raise RecipeError(f"{said}: {SET_OF}{wanted!r} names no label of an axis; known: {', '.join(known)}.")
    plain, _ = _assigned(study, {**labels, found[0]: wanted}, seed)
    if _referred(plain) is not None:
        raise RecipeError(f"{said}: the set of {wanted!r} is itself chosen by another set; name that one.")
    return _recipe(plain, said)
