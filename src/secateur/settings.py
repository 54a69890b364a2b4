"""From a name and its settings, as a recipe has them, to the thing that is registered under the name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from secateur.errors import RecipeError
from secateur.registry import Registry


def make(registry: Registry, name: str, settings: Mapping[str, Any]) -> Any:
    """The frozen dataclass registered under ``name``, with ``settings`` of strictly the types of its fields.

    Raises ``UnknownNameError`` for the name, ``RecipeError`` for a setting it does not have or one of another type.
    """
    kind = registry.load(name)
    known = [field.name for field in fields(kind)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known) or 'none'}."
            raise RecipeError(f"The {registry.kind} {name!r} has no setting {key!r}{hint}")
    types = get_type_hints(kind)
    for key, value in settings.items():
        try:
            TypeAdapter(types[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise RecipeError(
                f"The {registry.kind} {name!r}: {key}: {error.errors()[0]['msg']}, found {value!r}."
            ) from error
    return kind(**settings)
