"""What a format is: it writes rows to a place, and reads them from one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

Row = Mapping[str, Any]
"""A sample as columns: see ``COLUMNS``."""

COLUMNS: dict[str, type] = {
    "input_ids": list,
    "attention_mask": list,
    "text": str,
    "prompt_tokens": int,
    "finish": str,
    "mean_logprob": float,
    "origin": str,
}
"""Columns of what is written. ``input_ids`` and ``attention_mask`` are lists of int, and ``mean_logprob`` may be null."""

IDS = ("input_ids", "token_ids")
READ = (*IDS, "attention_mask", "prompt_tokens", "finish", "mean_logprob", "origin")
"""Columns of what is read, as far as they are there."""


class Format(ABC):
    """Subclasses say how rows lie in a file or a folder.

    ``suffixes``: how files of it end; empty: it is a folder. ``data``: the name of the file in a folder, or a glob of
    them where the format names its own. ``plain``: it takes ``text`` alone, without special tokens. ``writes``: it is
    one to export to.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    data: ClassVar[str] = ""
    plain: ClassVar[bool] = False
    writes: ClassVar[bool] = True

    @abstractmethod
    def write(self, rows: Sequence[Row], place: Path) -> None:
        """Write the rows to ``place``, a new file, or an empty folder where the format has no suffixes."""

    @abstractmethod
    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        """Every row and where it stands, for messages. Raises ``CalibrationError`` for what cannot be read."""
