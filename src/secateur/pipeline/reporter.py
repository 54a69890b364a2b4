"""What a stage tells the outside while it runs. The default tells nobody; the command line has its own."""

from __future__ import annotations

from collections.abc import Callable


class Reporter:
    """Receives notes and progress."""

    def note(self, text: str) -> None:
        """One thing worth knowing, as a sentence."""

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``what`` are finished."""

    def advance(self, what: str) -> Callable[[int, int], None]:
        """``progress`` for one thing, as the callback that the lower parts take."""
        return lambda done, total: self.progress(what, done, total)
