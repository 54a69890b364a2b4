"""Reading study files: YAML 1.2, unknown keys with file, line and "did you mean", names checked against each other."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from secateur.errors import RecipeError, UnknownNameError
from secateur.pipeline.recipe import Named, Recipe
from secateur.pipeline.recipe_file import (
    assign,
    ended,
    explain,
    inner_model,
    is_recipe,
    known_paths,
    line_numbers,
    load_recipe,
    near_key,
    parse_yaml,
    plain_value,
)
from secateur.pipeline.recipes import recipe_names
from secateur.registry import suggestion
from secateur.settings import make
from secateur.studies.comparisons import COMPARISONS
from secateur.studies.comparisons.base import Comparison
from secateur.studies.files import study_names, study_text
from secateur.studies.schema import StudySpec


@dataclass(frozen=True)
class Study:
    """A study file, read and checked as far as it can be without a model. ``base``: the base recipe's own keys;
    ``text``: the file as it was given."""

    name: str
    text: str
    spec: StudySpec
    base: dict[str, Any]
    comparisons: Sequence[Comparison]
    where: str
    lines: Mapping[str, int]

    @property
    def metrics(self) -> list[str]:
        """All that are asked for: the primary one, the further ones, and those of single comparisons."""
        own = (comparison.metric for comparison in self.comparisons if comparison.metric)
        return list(dict.fromkeys([*self.spec.all_metrics, *own]))

    def place(self, key: str) -> str:
        """File and line of a key, for messages."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.where}, line {self.lines[key]}" if key else self.where


def looks_like_study(name: str) -> bool:
    """Whether a file or a bundled name is a study rather than a recipe: it has a question, axes, or is no recipe."""
    if not is_recipe(name):
        return name in study_names() and name not in recipe_names()
    try:
        data = parse_yaml(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError):
        return False
    return isinstance(data, Mapping) and bool({"question", "axes", "comparisons"} & set(data))


def load_study(name: str, assignments: Sequence[str] = (), device: str | None = None) -> Study:
    """The study of a file, or of one that comes with the package. ``assignments``: ``key.path=value`` of the base recipe.

    Raises ``RecipeError`` for what is not YAML, unknown keys, fields, labels and names, and values of the wrong type.
    """
    text, where, folder = _read(name)
    data = parse_yaml(text, where)
    if not isinstance(data, Mapping):
        raise RecipeError(f"The study {where} holds a {type(data).__name__}, not a mapping of keys to values.")
    lines, plain = line_numbers(data), plain_value(data)
    try:
        spec = StudySpec.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(explain(error, where, lines, StudySpec)) from error
    base = _base(spec, folder, where, lines)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment!r} is not of the form key.path=value.")
        assign(base, key.strip(), plain_value(parse_yaml(value, f"--set {assignment!r}")))
    if device is not None:
        base["device"] = device
    _validated(base, where, lines)
    study = Study(Path(name).stem, text, spec, base, _comparisons(spec, where), where, lines)
    _check_paths(study)
    _check_names(study)
    return study


def _read(name: str) -> tuple[str, str, Path]:
    if not is_recipe(name):
        if name not in study_names():
            known = study_names()
            raise UnknownNameError(f"There is no study named {name!r}{suggestion(name, known)}; or give a .yaml file.")
        return study_text(name), name, Path()
    try:
        return Path(name).read_text(encoding="utf-8"), name, Path(name).parent
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The study {name} cannot be read: {error}.") from error


def _base(spec: StudySpec, folder: Path, where: str, lines: Mapping[str, int]) -> dict[str, Any]:
    """The base recipe's keys: written in the study, or those of the recipe it names (looked for beside the study)."""
    if not isinstance(spec.recipe, str):
        return plain_value(spec.recipe)
    name = spec.recipe
    if is_recipe(name) and not Path(name).is_file() and (folder / name).is_file():
        name = str(folder / name)
    try:
        return load_recipe(name).model_dump(exclude_unset=True)
    except RecipeError as error:
        raise RecipeError(f"{where}, line {lines.get('recipe', 1)}: {error}") from error


def _validated(base: dict[str, Any], where: str, lines: Mapping[str, int]) -> Recipe:
    own = {key.removeprefix("recipe."): line for key, line in lines.items() if key.startswith("recipe.")}
    try:
        return Recipe.model_validate(base)
    except ValidationError as error:
        raise RecipeError(explain(error, f"{where} (recipe)", own)) from error


def _comparisons(spec: StudySpec, where: str) -> list[Comparison]:
    found = []
    for number, named in enumerate(spec.comparisons, start=1):
        try:
            found.append(make(COMPARISONS, named.name, named.settings))
        except (RecipeError, UnknownNameError) as error:
            raise RecipeError(f"{where}, comparison {number}: {error}") from error
    return found


def _check_paths(study: Study) -> None:
    """Raise ``RecipeError`` for a field that recipes do not have."""
    for axis, spec in study.spec.axes.items():
        for label, fields in spec.labels.items():
            if not fields and len(spec.labels) < 2:
                raise RecipeError(f"{study.place(f'axes.{axis}')}: axis {axis!r} has one label, which sets nothing.")
            for path in fields:
                place = study.place(f"axes.{axis}.{label}")
                if path == "seed":
                    raise RecipeError(f"{place}: axis {axis!r} sets the seed; seeds are repeats, not an axis.")
                _check_path(path, f"{place}: axis {axis!r} sets {path!r}")


def _check_path(path: str, what: str) -> None:
    model: Any = Recipe
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise RecipeError(f"{what}, but {'.'.join(parts[:depth])} is a value, not a group of settings.")
        if issubclass(model, Named):
            return  # settings of a registered thing: checked when the thing is made
        if part not in model.model_fields:
            near = near_key(parts[: depth + 1], Recipe)
            wide = difflib.get_close_matches(path, known_paths(), n=1, cutoff=0.6)
            hint = f"; did you mean {wide[0]!r}?" if wide else near
            raise RecipeError(f"{what}, but recipes have no field {'.'.join(parts[: depth + 1])!r}{ended(hint)}")
        model = inner_model(model.model_fields[part].annotation)


def _check_names(study: Study) -> None:
    """Raise ``RecipeError`` when exclusions or comparisons name what the study does not have."""
    spec = study.spec
    axes = {name: list(axis.labels) for name, axis in spec.axes.items()}
    for number, entry in enumerate(spec.exclude, start=1):
        place = f"{study.place('exclude')}: exclusion {number}"
        if not entry:
            raise RecipeError(f"{place} names no axis, so it would exclude every cell.")
        for axis, labels in entry.items():
            if axis not in axes:
                raise RecipeError(f"{place}: there is no axis {axis!r}{suggestion(axis, axes)}.")
            for label in labels if isinstance(labels, list) else [labels]:
                if label not in axes[axis]:
                    raise RecipeError(f"{place}: axis {axis!r} has no label {label!r}{suggestion(label, axes[axis])}.")
    numbers = {name: axis.numbers for name, axis in spec.axes.items()}
    for number, comparison in enumerate(study.comparisons, start=1):
        try:
            comparison.check(axes, numbers)
        except RecipeError as error:
            raise RecipeError(f"{study.place('comparisons')}, comparison {number}: {error}") from error
