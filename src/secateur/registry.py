"""Names to things: the table behind methods, allocations, sources and filters, and their third-party additions.

A table knows names and summaries without importing what they name, so listing them needs no torch.
Other packages add entries by an entry point in the table's group, e.g. ``secateur.methods``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from secateur.errors import UnknownNameError, UsageError


@dataclass(frozen=True)
class Entry:
    """One named thing: where it lives (``module:attribute``) and what it is, in one line."""

    name: str
    target: str
    summary: str


class Registry:
    """A table of ``Entry``; ``kind`` is the word used in messages, ``group`` the entry-point group."""

    def __init__(self, kind: str, builtins: Iterable[Entry]) -> None:
        self.kind = kind
        self.group = f"secateur.{kind}s"
        self._builtins = {entry.name: entry for entry in builtins}

    def entries(self) -> dict[str, Entry]:
        """Every entry by name: the built-in ones, then those of installed packages (which cannot replace them)."""
        found = dict(self._builtins)
        for point in entry_points(group=self.group):
            found.setdefault(point.name, Entry(point.name, point.value, f"from {point.value.partition(':')[0]}"))
        return found

    def load(self, name: str) -> Any:
        """The object registered under ``name``. Raises ``UnknownNameError`` with the nearest names."""
        # Reading the entry points of all packages takes a while, and cannot replace a built-in.
        entries = self._builtins if name in self._builtins else self.entries()
        if name not in entries:
            raise UnknownNameError(f"There is no {self.kind} named {name!r}{suggestion(name, entries)}.")
        module, _, attribute = entries[name].target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"The {self.kind} {name!r} is registered as {entries[name].target}, which cannot be imported: {error}."
            ) from error


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``-style tail for a message, or the list of known names when none is close."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return (f"; did you mean {near[0]!r}? Known: " if near else "; known: ") + ", ".join(names)
