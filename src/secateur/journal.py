"""A JSON-lines file that is only appended to, so that an interrupted stage can go on from its last finished step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Journal:
    """``entries`` are the lines read back; a torn last line (the process died while writing it) is dropped.

    Without a ``path`` nothing is written: the entries given are only remembered, as are those to come.
    """

    def __init__(self, path: Path | None, entries: Iterable[dict[str, Any]] = ()) -> None:
        self.path = path
        self.entries = list(entries)
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self.entries.append(entry)
            whole += len(line)
        if path.exists():
            os.truncate(path, whole)

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line; on disk when this returns."""
        if self.path is not None:
            with self.path.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.entries.append(entry)
