"""A JSON list of objects, as some programs dump their calibration examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.calibration.exchange.base import Format, Row
from secateur.errors import CalibrationError, UsageError


class JsonList(Format):
    """``[{"input_ids": [...], "attention_mask": [...]}, ...]``, or one such object of lists of lists; read only."""

    suffixes = (".json",)
    writes = False

    def write(self, rows: Sequence[Row], place: Path) -> None:
        raise UsageError("Nothing is written as json; jsonl holds the same.")

    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CalibrationError(f"{place} is not JSON: {error}.") from error
        for number, row in enumerate(found if isinstance(found, list) else [found], 1):
            yield f"{place.name}, entry {number:,},", row
