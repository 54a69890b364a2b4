"""One JSON object a line, plain or compressed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.calibration.exchange.base import Format, Row
from secateur.errors import CalibrationError


class JsonLines(Format):
    """A row a line, in UTF-8."""

    suffixes = (".jsonl",)
    data = "data.jsonl"

    def write(self, rows: Sequence[Row], place: Path) -> None:
        place.write_bytes(_packed(rows))

    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        try:
            text = self._unpacked(place).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CalibrationError(f"{place} is not UTF-8 text (byte {error.start:,}: {error.reason}).") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CalibrationError(f"{place} is not a whole gzip file: {error}.") from error
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON text may hold other line ends
            if not line.strip():
                continue
            where = f"{place.name}, line {number:,},"
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise CalibrationError(f"{where} is not JSON: {error}.") from error

    def _unpacked(self, place: Path) -> bytes:
        return place.read_bytes()


class PackedJsonLines(JsonLines):
    """``JsonLines`` through gzip, without a time stamp: the same rows, the same bytes."""

    suffixes = (".jsonl.gz",)
    data = "data.jsonl.gz"

    def write(self, rows: Sequence[Row], place: Path) -> None:
        place.write_bytes(gzip.compress(_packed(rows), mtime=0))

    def _unpacked(self, place: Path) -> bytes:
        return gzip.decompress(place.read_bytes())


def _packed(rows: Sequence[Row]) -> bytes:
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode()
