"""What cannot be read from a type's configuration class, type by type, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hint:
    """``base``: what the default configuration is made with; ``final``: what is set in the small one, by dotted path."""

    reason: str
    base: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)


HINTS: dict[str, Hint] = {}
