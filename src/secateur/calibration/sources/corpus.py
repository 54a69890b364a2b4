"""Text from a Hub data set, streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.formats import Column, Format, expected, keys_of, text_of
from secateur.errors import CalibrationError

SHUFFLE_BUFFER = 10_000


class CorpusSource(TextSource):
    """A Hub data set, streamed: ORG/NAME or ORG/NAME:SUBSET.

    Documents come in an order shuffled by ``datasets`` over its shards and a buffer of ``SHUFFLE_BUFFER`` documents; the
    paper's rules draw from the first as many. ``formats``: how a row becomes text, in place of the column ``text_key``.
    ``files``: a glob of JSON lines in the data set, read in place of what it declares. Raises ``CalibrationError`` when
    the Hub cannot be reached or has no such data set, split or text column.
    """

    def __init__(
        self,
        name: str,
        text_key: str = "text",
        split: str = "train",
        revision: str | None = None,
        formats: Sequence[Format] = (),
        files: str | None = None,
    ) -> None:
        self.name = name
        self.text_key, self.split, self.revision = text_key, split, revision
        self.formats, self.files = tuple(formats) or (Column(text_key),), files

    def fingerprint(self) -> str:
        how = self.text_key if self.formats == (Column(self.text_key),) else repr(self.formats)
        return f"{self.name}@{self.revision}/{self.split}/{how}" + (f"/{self.files}" if self.files else "")

    def texts(self) -> Iterator[tuple[str, str]]:
        return self._stream(None)

    def shuffled(self, seed: int) -> Iterator[tuple[str, str]]:
        return self._stream(seed)

    def paper_texts(self, seed: int) -> list[tuple[str, str]]:
        return list(itertools.islice(self._stream(seed), SHUFFLE_BUFFER))

    def _stream(self, seed: int | None) -> Iterator[tuple[str, str]]:
        try:
            stream = self._open()
            if seed is not None:
                stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
            for number, row in enumerate(stream):
                text = text_of(row, self.formats)
                if text is None:
                    raise CalibrationError(
                        f"The data set {self.name!r} has no text column {expected(self.formats)} (found "
                        f"{keys_of(row, self.formats)}); name the right one with calibration.text_key."
                    )
                yield f"{self.name}#{number}", text
        except CalibrationError:
            raise
        except Exception as error:  # the Hub client, fsspec and datasets each raise their own kinds
            reason = " ".join(str(error).split())[:300]
            raise CalibrationError(
                f"The data set {self.name!r} (split {self.split!r}) could not be read from the Hub ({type(error).__name__}: "
                f"{reason}). Check the name and the connection; offline, give a local file (txt, jsonl, parquet), a folder "
                "of them in SECATEUR_CORPORA, or a bundled source (prose, site-packages; for calibration also self), which "
                "need no network."
            ) from error

    def _open(self) -> Any:
        from datasets import load_dataset

        path, _, subset = self.name.partition(":")
        if self.files is None:
            return load_dataset(path, subset or None, split=self.split, revision=self.revision, streaming=True)
        place = f"hf://datasets/{path}" + (f"@{self.revision}" if self.revision else "")
        return load_dataset("json", data_files={self.split: f"{place}/{self.files}"}, split=self.split, streaming=True)
