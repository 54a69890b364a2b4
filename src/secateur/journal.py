"""A JSON-lines file that is only appended to, so that an interrupted stage can go on from its last finished step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """``entries`` are the lines read back; a torn last line (the process died while writing it) is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
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
        with self.path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.entries.append(entry)
