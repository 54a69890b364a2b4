"""Methods that start from another method's mask: how their ``initial`` setting names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.errors import UsageError
from secateur.methods import METHODS
from secateur.methods.base import Method
from secateur.statistics import Statistic

Initial = str | dict[str, Any]
"""A method by name, or ``{name: ..., its settings ...}``."""


def initial_method(initial: Initial) -> Method:
    """The method that ``initial`` names. Raises ``UnknownNameError`` or ``UsageError`` when there is no such thing."""
    settings = {"name": initial} if isinstance(initial, str) else dict(initial)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"A method to start from needs a name, e.g. 'wanda'; found {initial!r}.")
    return _built(name, settings)


def _built(name: str, settings: Mapping[str, Any]) -> Method:
    kind = METHODS.load(name)
    try:
        return kind(**settings)
    except TypeError as error:
        raise UsageError(f"The method {name!r} to start from cannot have the settings {settings}: {error}.") from error


def united(*needs: tuple[type[Statistic], ...]) -> tuple[type[Statistic], ...]:
    """Every statistic of several lists once, in order."""
    return tuple(dict.fromkeys(kind for kinds in needs for kind in kinds))
