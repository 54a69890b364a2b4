"""What a source is: documents, as tokens, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Protocol

from secateur.calibration.packing import Document
from secateur.errors import CalibrationError


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that sources use."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def __len__(self) -> int: ...

    @property
    def all_special_ids(self) -> list[int]: ...


class Source(ABC):
    """Documents for calibration. ``name`` is how messages and records call it."""

    name: str

    def fingerprint(self) -> str:
        """What identifies the content beyond the name; goes into digests."""
        return ""

    @abstractmethod
    def documents(self, tokenizer: Tokenizer, seed: int) -> Iterator[Document]:
        """Documents in the order ``seed`` decides: the same seed, the same order."""


class TextSource(Source):
    """A source of texts: write ``texts``; the base class shuffles and tokenises."""

    @abstractmethod
    def texts(self) -> Iterable[tuple[str, str]]:
        """``(origin, text)`` of every document, in a fixed order."""

    def fingerprint(self) -> str:
        """SHA-256 over every origin and text."""
        digest = hashlib.sha256()
        for origin, text in self.texts():
            digest.update(f"{origin}\0{text}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()

    def shuffled(self, seed: int) -> Iterator[tuple[str, str]]:
        """``texts`` in the order ``seed`` decides. Raises ``CalibrationError`` when there are none."""
        found = [(origin, text) for origin, text in self.texts() if text.strip()]
        if not found:
            raise CalibrationError(f"The source {self.name!r} holds no text.")
        random.Random(seed).shuffle(found)
        return iter(found)

    def documents(self, tokenizer: Tokenizer, seed: int) -> Iterator[Document]:
        for origin, text in self.shuffled(seed):
            yield Document(tuple(tokenizer.encode(text, add_special_tokens=False)), origin=origin)
