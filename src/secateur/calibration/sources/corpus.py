"""Text from a Hub data set, streamed."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.calibration.sources.base import TextSource
from secateur.errors import CalibrationError

SHUFFLE_BUFFER = 10_000


class CorpusSource(TextSource):
    """A Hub data set, streamed: ORG/NAME or ORG/NAME:SUBSET.

    Documents come in an order shuffled by ``datasets`` over its shards and a buffer of ``SHUFFLE_BUFFER`` documents.
    Raises ``CalibrationError`` when the Hub cannot be reached or has no such data set, split or text column.
    """

    def __init__(self, name: str, text_key: str = "text", split: str = "train", revision: str | None = None) -> None:
        self.name = name
        self.text_key, self.split, self.revision = text_key, split, revision

    def fingerprint(self) -> str:
        return f"{self.name}@{self.revision}/{self.split}/{self.text_key}"

    def texts(self) -> Iterator[tuple[str, str]]:
        return self._stream(None)

    def shuffled(self, seed: int) -> Iterator[tuple[str, str]]:
        return self._stream(seed)

    def _stream(self, seed: int | None) -> Iterator[tuple[str, str]]:
        from datasets import load_dataset

        path, _, subset = self.name.partition(":")
        try:
            stream = load_dataset(path, subset or None, split=self.split, revision=self.revision, streaming=True)
            if seed is not None:
                stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
            for number, row in enumerate(stream):
                if not isinstance(row.get(self.text_key), str):
                    raise CalibrationError(
                        f"The data set {self.name!r} has no text column {self.text_key!r} (found {', '.join(row)}); name "
                        "the right one with calibration.text_key."
                    )
                yield f"{self.name}#{number}", row[self.text_key]
        except CalibrationError:
            raise
        except Exception as error:  # the Hub client, fsspec and datasets each raise their own kinds
            reason = " ".join(str(error).split())[:300]
            raise CalibrationError(
                f"The data set {self.name!r} (split {self.split!r}) could not be read from the Hub ({type(error).__name__}: "
                f"{reason}). Check the name and the connection; offline, give a local file (txt, jsonl, parquet) or a bundled "
                "source instead (prose, site-packages; for calibration also self), which need no network."
            ) from error
