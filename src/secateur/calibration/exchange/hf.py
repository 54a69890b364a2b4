"""The format of ``datasets``: a folder that ``save_to_disk`` writes and ``load_from_disk`` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.calibration.exchange.base import COLUMNS, IDS, READ, Format, Row
from secateur.errors import CalibrationError

MARKS = ("state.json", "dataset_dict.json")


class HuggingFace(Format):
    """A folder for ``datasets.load_from_disk``."""

    data = "*.arrow"

    def write(self, rows: Sequence[Row], place: Path) -> None:
        from datasets import Dataset, Features, List, Value

        kinds: dict[type, Any] = {
            list: List(Value("int64")),
            str: Value("string"),
            int: Value("int64"),
            float: Value("float64"),
        }
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        features = Features({name: kinds[kind] for name, kind in COLUMNS.items()})
        with _quietly():
            Dataset.from_dict(columns, features=features).save_to_disk(place)

    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        from datasets import load_from_disk

        try:
            found: Any = load_from_disk(place)
        except Exception as error:  # datasets, pyarrow and fsspec each raise their own kinds
            reason = " ".join(str(error).split())[:300]
            raise CalibrationError(f"{place} is not a data set folder that datasets can load: {reason}") from error
        if isinstance(found, dict):
            if len(found) != 1:
                raise CalibrationError(
                    f"{place} holds the splits {', '.join(found) or 'none at all'}; give the folder of the one to import, "
                    f"e.g. {place / next(iter(found), 'train')}."
                )
            found = next(iter(found.values()))
        if set(IDS) & set(found.column_names):  # else the first row says what is there
            found = found.select_columns([name for name in found.column_names if name in READ])
        for number, row in enumerate(found.with_format(None), 1):
            yield f"{place.name}, row {number:,},", row


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, which are not ours to print."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
