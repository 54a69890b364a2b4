"""One parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur.calibration.exchange.base import COLUMNS, IDS, READ, Format, Row
from secateur.errors import CalibrationError


class Parquet(Format):
    """Columns as in ``COLUMNS``, integers as int64, ``mean_logprob`` as double."""

    suffixes = (".parquet",)
    data = "data.parquet"

    def write(self, rows: Sequence[Row], place: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        kinds: dict[type, Any] = {
            list: pyarrow.list_(pyarrow.int64()),
            str: pyarrow.string(),
            int: pyarrow.int64(),
            float: pyarrow.float64(),
        }
        schema = pyarrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
        parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema), place)

    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(place)
            names = file.schema_arrow.names
            wanted = [name for name in names if name in READ] if set(IDS) & set(names) else names
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{place.name}, row {number:,},", row
        except (pyarrow.ArrowException, OSError) as error:
            raise CalibrationError(f"{place} is not a parquet file that can be read: {error}.") from error
