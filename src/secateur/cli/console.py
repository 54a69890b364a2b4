"""Results on stdout; notes, progress and errors on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from secateur.pipeline.reporter import Reporter

SECONDS_BETWEEN_LINES = 5.0


class ConsoleReporter(Reporter):
    """Progress for people. ``quiet``: notes only; ``verbose``: every step as a line of its own."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet, self.verbose = quiet, verbose
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._last = 0.0

    def __enter__(self) -> ConsoleReporter:
        if self.console.is_terminal and not self.quiet and not self.verbose:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=self.console, transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def note(self, text: str) -> None:
        self.console.print(f"note: {text}", soft_wrap=True, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        if self.quiet:
            return
        if self._bars:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(what))
        elif self.verbose or done >= total or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.console.print(f"{what}: {done} of {total}", soft_wrap=True, markup=False)


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def print_line(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def print_error(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def print_table(headings: list[str], rows: list[list[str]], left: int = 1) -> None:
    """A plain aligned table; the first ``left`` columns are text, the rest numbers."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    for number, row in enumerate([headings, *rows]):
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())
        if number == 0:
            print_line("  ".join("-" * width for width in widths))
