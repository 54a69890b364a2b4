"""Plain text, for programs that tokenise it themselves (llama.cpp's imatrix)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.calibration.exchange.base import Format, Row
from secateur.errors import CalibrationError


class Text(Format):
    """The samples' text, parted by blank lines. The ids are lost: text tokenised again is another set."""

    suffixes = (".txt",)
    data = "data.txt"
    plain = True

    def write(self, rows: Sequence[Row], place: Path) -> None:
        text = "\n\n".join(row["text"].strip("\n") for row in rows)
        place.write_text(text + "\n", encoding="utf-8", newline="\n")

    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        raise CalibrationError(
            f"{place} holds text, not token ids: it becomes calibration data as it is, with 'secateur prune MODEL "
            f"--calibration {place}', which tokenises and packs it."
        )
