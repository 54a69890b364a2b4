"""Text from files: txt, jsonl, jsonl.gz, parquet, or a folder of them."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.formats import Column, Format, expected, keys_of, text_of
from secateur.errors import CalibrationError

KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class FileSource(TextSource):
    """A txt, jsonl, jsonl.gz or parquet file, or a folder of them.

    A txt file is one document. A jsonl line is an object with the text under ``text_key``; a parquet row likewise.
    ``formats``: other ways in which a row becomes text, the first that fits. Raises ``CalibrationError`` naming file and
    line for anything else.
    """

    def __init__(self, path: str | Path, text_key: str = "text", formats: Sequence[Format] = ()) -> None:
        self.path = Path(path).expanduser()
        self.name = str(path)
        self.formats = tuple(formats) or (Column(text_key),)

    def files(self) -> list[Path]:
        """The files that are read, by name. Raises ``CalibrationError`` when there are none."""
        if not self.path.exists():
            raise CalibrationError(f"There is no file or folder {self.path} to read calibration text from.")
        if not self.path.is_dir():
            return [self.path]
        files = sorted(path for path in self.path.rglob("*") if path.name.endswith(KINDS) and not path.is_dir())
        if not files:
            raise CalibrationError(f"The folder {self.path} has no file that ends in {', '.join(KINDS)}.")
        return files

    def texts(self) -> Iterator[tuple[str, str]]:
        for file in self.files():
            yield from self._texts_of(file)

    def _texts_of(self, file: Path) -> Iterator[tuple[str, str]]:
        if not file.name.endswith(KINDS):
            raise CalibrationError(f"{file} is of no kind that can be read; known: {', '.join(KINDS)}.")
        try:
            if file.suffix == ".parquet":
                yield from self._parquet(file)
            elif file.suffix == ".txt":
                yield file.name, _decoded(file.read_bytes(), f"{file}")
            else:
                yield from self._lines(file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CalibrationError(f"{file} is not a whole gzip file: {error}.") from error
        except PermissionError as error:
            raise CalibrationError(f"{file} may not be read: {error.strerror}.") from error
        except OSError as error:
            raise CalibrationError(f"{file} cannot be read: {error.strerror or error}.") from error

    def _lines(self, file: Path) -> Iterator[tuple[str, str]]:
        unpack = gzip.open if file.suffix == ".gz" else Path.open
        with unpack(file, mode="rb") as stream:
            for number, line in enumerate(stream, 1):
                where = f"{file}, line {number},"
                if not line.strip():
                    continue
                try:
                    entry = json.loads(_decoded(line, where))
                except (ValueError, RecursionError) as error:
                    raise CalibrationError(f"{where} is not JSON: {error}.") from error
                yield f"{file.name}:{number}", self._text_in(entry, where)

    def _parquet(self, file: Path) -> Iterator[tuple[str, str]]:
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            formats = [form for form in self.formats if set(form.columns) <= set(names)]
            if not formats:
                raise self._wrong(dict.fromkeys(names, ""), f"{file}")
            columns = sorted({name for form in formats for name in form.columns})
            number = 0
            for batch in table.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file.name}:{number}", self._text_in(row, f"{file}, row {number},")
        except (pyarrow.ArrowException, OSError) as error:
            raise CalibrationError(f"{file} is not a parquet file that can be read: {error}.") from error

    def _text_in(self, entry: object, where: str) -> str:
        text = text_of(entry, self.formats)
        if text is None:
            raise self._wrong(entry, where)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CalibrationError(
                f"{where} has text with half a surrogate pair at character {error.start:,}, which is no Unicode text; "
                "leave it out, or mend what wrote it."
            ) from error
        return text

    def _wrong(self, entry: object, where: str) -> CalibrationError:
        return CalibrationError(
            f"{where} has no text under the key {expected(self.formats)} (found {keys_of(entry, self.formats)}); name the "
            "right one with calibration.text_key."
        )


def _decoded(raw: bytes, where: str) -> str:
    """UTF-8 as text, without a byte order mark. Raises ``CalibrationError`` for another encoding and for binary data."""
    kind = "; it looks like UTF-16" if raw.startswith(UTF_16) else ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{where} is not UTF-8 text (byte {error.start:,}: {error.reason}{kind}); convert it to UTF-8 first."
        ) from error
    if "\0" in text:
        raise CalibrationError(
            f"{where} is not UTF-8 text (byte {raw.index(0):,} is zero: UTF-16, or not text at all); convert it to UTF-8 "
            "first."
        )
    return text
