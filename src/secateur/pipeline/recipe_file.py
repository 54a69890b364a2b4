"""Reading recipes: YAML 1.2 with strict types, ``--set`` values, and errors that name file, line and key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from secateur.errors import RecipeError, UnknownNameError
from secateur.pipeline.recipe import Named, Recipe
from secateur.pipeline.recipes import recipe_names, recipe_text
from secateur.registry import suggestion


def load_recipe(
    name: str | None, assignments: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe from a file or a bundled name (``None``: the defaults), with ``overrides`` (dotted key to value, ``None``
    ignored) and then ``key.path=value`` assignments laid over it.

    Raises ``RecipeError`` for what is not YAML, unknown keys and values of the wrong type.
    """
    data, where = ({}, "recipe") if name is None else _read(name)
    lines = line_numbers(data)
    plain = plain_value(data)
    for key, value in (overrides or {}).items():
        if value is not None:
            assign(plain, key, value)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                f"--set {assignment!r} is not of the form key.path=value, e.g. --set calibration.samples=64."
            )
        assign(plain, key.strip(), plain_value(parse_yaml(text, f"--set {assignment!r}")))
        lines.pop(key.strip(), None)
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(explain(error, where, lines)) from error


def is_recipe(name: str) -> bool:
    """Whether the user's MODEL|RECIPE is a recipe file."""
    return name.endswith((".yaml", ".yml"))


def _read(name: str) -> tuple[Any, str]:
    path = Path(name)
    if not is_recipe(name):
        if name not in recipe_names():
            raise UnknownNameError(
                f"There is no recipe named {name!r}{suggestion(name, recipe_names())}; or give a .yaml file."
            )
        text, where = recipe_text(name), name
    else:
        try:
            text, where = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe {path} cannot be read: {error}.") from error
    data = parse_yaml(text, where)
    if data is None:
        return {}, where
    if not isinstance(data, Mapping):
        raise RecipeError(f"The recipe {where} holds a {type(data).__name__}, not a mapping of keys to values.")
    return data, where


def parse_yaml(text: str, where: str) -> Any:
    """YAML 1.2, with the places of its keys. Raises ``RecipeError`` for what is none."""
    try:
        return YAML(typ="rt", pure=True).load(text)
    except YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def plain_value(value: Any) -> Any:
    """ruamel's round-trip types to plain ones."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain_value(entry) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def line_numbers(data: Any, prefix: str = "") -> dict[str, int]:
    """Dotted key to the line it stands on, counted from 1."""
    found: dict[str, int] = {}
    if isinstance(data, Mapping) and hasattr(data, "lc"):
        for key, value in data.items():
            name = f"{prefix}{key}"
            with suppress(KeyError, TypeError):  # a key that a YAML merge brought in has no line of its own
                found[name] = data.lc.key(key)[0] + 1  # type: ignore[attr-defined]
            found |= line_numbers(value, f"{name}.")
    return found


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key`` of ``data`` to ``value``. Raises ``RecipeError`` when a value is in the way."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if isinstance(inner, str) and parent in {"method", "allocation"}:
            inner = data[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise RecipeError(
                f"The key {key!r} cannot be set: {parent!r} is the value {inner!r}, not a group of settings."
            )
        data = inner
    old = data.get(last)
    if (
        last in {"method", "allocation"}
        and isinstance(value, str)
        and isinstance(old, dict)
        and old.get("name") == value
    ):
        return
    data[last] = value


def explain(error: ValidationError, where: str, lines: Mapping[str, int], root: type[BaseModel] = Recipe) -> str:
    """What pydantic found wrong with a file of the kind ``root``, as sentences with file, line and key: unknown keys
    first, and without the required ones that are only misspelt."""
    problems = error.errors()
    unknown = [[str(part) for part in one["loc"]] for one in problems if one["type"] == "extra_forbidden"]
    sentences = [
        f"{_place(path, where, lines)}: there is no key {'.'.join(path)!r}{ended(near_key(path, root))}"
        for path in unknown
    ]
    for problem in problems:
        path = [str(part) for part in problem["loc"]]
        place, key = _place(path, where, lines), ".".join(path)
        if problem["type"] == "missing":
            if not any(path[:-1] == one[:-1] and _near(one[-1], path[-1:]) for one in unknown):
                sentences.append(f"{place}: the key {key!r} is missing.")
        elif problem["type"] != "extra_forbidden":
            message = problem["msg"].removeprefix("Value error, ")
            # Our own sentences say what was found; pydantic's do not.
            found = "" if problem["type"] == "value_error" else f", found {_found(problem['input'])}."
            sentences.append(f"{place}: {key}: {message}{found}")
    return " ".join(sentences)


def _place(path: Sequence[str], where: str, lines: Mapping[str, int]) -> str:
    line = lines.get(".".join(path))
    return f"{where}, line {line}" if line else where


def _found(value: Any) -> str:
    """A value in a message; of groups and lists of them only what they are, as they may be the whole file."""
    if isinstance(value, Mapping):
        return "a group of settings"
    if isinstance(value, list) and any(isinstance(entry, Mapping | list) for entry in value):
        return "a list"
    return repr(value)


def ended(text: str) -> str:
    """``text`` as the end of a sentence."""
    return text if text.endswith("?") else f"{text}."


def _near(name: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.5)


def near_key(path: Sequence[str], root: type[BaseModel] = Recipe) -> str:
    """The tail of a message about a key that ``root`` does not have: the nearest it has, or all."""
    model: Any = root
    for part in path[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        annotation = field.annotation if field else None
        model = next((kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)), None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    known = list(model.model_fields)
    near = _near(path[-1], known)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"


def known_paths(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted field of a recipe."""
    found = []
    for name, field in model.model_fields.items():
        inner = inner_model(field.annotation)
        found.append(f"{prefix}{name}")
        if isinstance(inner, type) and issubclass(inner, BaseModel) and not issubclass(inner, Named):
            found += known_paths(inner, f"{prefix}{name}.")
    return found


def inner_model(annotation: Any) -> Any:
    """The model class of a field that is one, or may be one."""
    if isinstance(annotation, type):
        return annotation
    if get_origin(annotation) is list:
        return None
    return next((kind for kind in map(inner_model, get_args(annotation)) if _is_model(kind)), None)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
