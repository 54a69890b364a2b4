"""Text from files: txt, jsonl, jsonl.gz, parquet, or a folder of them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from secateur.calibration.sources.base import TextSource
from secateur.errors import CalibrationError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


class FileSource(TextSource):
    """A txt, jsonl, jsonl.gz or parquet file, or a folder of them.

    A txt file is one document. A jsonl line is an object with the text under ``text_key``; a parquet row likewise.
    Raises ``CalibrationError`` naming file and line for anything else.
    """

    def __init__(self, path: str | Path, text_key: str = "text") -> None:
        self.path = Path(path).expanduser()
        self.name = str(path)
        self.text_key = text_key

    def texts(self) -> Iterator[tuple[str, str]]:
        if not self.path.exists():
            raise CalibrationError(f"There is no file or folder {self.path} to read calibration text from.")
        if self.path.is_dir():
            files = sorted(path for path in self.path.rglob("*") if path.name.endswith(KINDS))
            if not files:
                raise CalibrationError(f"The folder {self.path} has no file that ends in {', '.join(KINDS)}.")
        else:
            files = [self.path]
        for file in files:
            yield from self._texts_of(file)

    def _texts_of(self, file: Path) -> Iterator[tuple[str, str]]:
        if not file.name.endswith(KINDS):
            raise CalibrationError(f"{file} is of no kind that can be read; known: {', '.join(KINDS)}.")
        try:
            if file.suffix == ".parquet":
                yield from self._parquet(file)
            elif file.suffix == ".txt":
                yield file.name, file.read_text(encoding="utf-8")
            else:
                yield from self._lines(file)
        except PermissionError as error:
            raise CalibrationError(f"{file} may not be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"{file} is not UTF-8 text (byte {error.start:,}: {error.reason}); convert it to UTF-8 first."
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CalibrationError(f"{file} is not a whole gzip file: {error}.") from error

    def _lines(self, file: Path) -> Iterator[tuple[str, str]]:
        unpack = gzip.open if file.suffix == ".gz" else Path.open
        with unpack(file, mode="rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise CalibrationError(f"{file}, line {number}, is not JSON: {error}.") from error
                yield f"{file.name}:{number}", self._text_in(entry, f"{file}, line {number},")

    def _parquet(self, file: Path) -> Iterator[tuple[str, str]]:
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            table = parquet.ParquetFile(file)
            self._text_in(dict.fromkeys(table.schema_arrow.names, ""), f"{file}")
            number = 0
            for batch in table.iter_batches(columns=[self.text_key]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield f"{file.name}:{number}", self._text_in({self.text_key: text}, f"{file}, row {number},")
        except (pyarrow.ArrowException, OSError) as error:
            raise CalibrationError(f"{file} is not a parquet file that can be read: {error}.") from error

    def _text_in(self, entry: object, where: str) -> str:
        if isinstance(entry, dict) and isinstance(entry.get(self.text_key), str):
            return entry[self.text_key]
        keys = f"the keys {', '.join(map(str, entry))}" if isinstance(entry, dict) else type(entry).__name__
        if isinstance(entry, dict) and self.text_key in entry:
            keys = f"{type(entry[self.text_key]).__name__} there"
        raise CalibrationError(
            f"{where} has no text under the key {self.text_key!r} (found {keys}); name the right one with "
            "calibration.text_key."
        )
