"""What a source is: documents, as tokens, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, overload

from secateur.calibration.document import Document
from secateur.calibration.packing import PaperRule, Rule
from secateur.errors import CalibrationError

PIECE = 1_000_000
"""Characters tokenised at once. A longer text is several documents, cut before white space: its tokens are those of the
whole but, at most, around the cuts."""

ENDLESS_TAKEN = 8
"""Documents that the paper's rules get of a source that is no list of texts."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that sources use."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def __len__(self) -> int: ...

    @property
    def all_special_ids(self) -> list[int]: ...


class Source(ABC):
    """Documents for calibration. ``name`` is how messages and records call it; ``paper_rule``: how the paper cuts it."""

    name: str
    paper_rule: PaperRule = "paper-document"

    def fingerprint(self) -> str:
        """What identifies the content beyond the name; goes into digests."""
        return ""

    @abstractmethod
    def documents(self, tokenizer: Tokenizer, seed: int) -> Iterator[Document]:
        """Documents in the order ``seed`` decides: the same seed, the same order."""

    def for_rule(self, rule: Rule, tokenizer: Tokenizer, seed: int, enough: int | None = None) -> Iterable[Document]:
        """The documents as a packing rule takes them; ``enough``: no text is asked for more tokens."""
        if rule == "paper-document":
            return self.paper_documents(tokenizer, seed)
        return self.paper_joined(tokenizer, seed) if rule == "paper-joined" else self.documents(tokenizer, seed)

    def paper_documents(self, tokenizer: Tokenizer, seed: int) -> Sequence[Document]:
        """The documents that the paper's rules draw from, with the special tokens that the tokenizer adds."""
        return list(itertools.islice(self.documents(tokenizer, seed), ENDLESS_TAKEN))

    def paper_joined(self, tokenizer: Tokenizer, seed: int) -> Iterator[Document]:
        """The same joined, in pieces."""
        return iter(self.paper_documents(tokenizer, seed))


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

    def paper_texts(self, seed: int) -> list[tuple[str, str]]:
        """The texts that the paper's rules draw from: all, in their fixed order, blank ones too. Raises as ``shuffled``."""
        found = list(self.texts())
        if not any(text.strip() for _, text in found):
            raise CalibrationError(f"The source {self.name!r} holds no text.")
        return found

    def documents(self, tokenizer: Tokenizer, seed: int, enough: int | None = None) -> Iterator[Document]:
        """Every text, or the parts of one that is long, until they have ``enough`` tokens."""
        for origin, text in self.shuffled(seed):
            pieces, tokens = pieces_of(text), 0
            for number, piece in enumerate(pieces):
                ids = tuple(tokenizer.encode(piece, add_special_tokens=False))
                yield Document(ids, number == len(pieces) - 1, origin, begun=number == 0, part=len(pieces) > 1)
                tokens += len(ids)
                if enough is not None and tokens >= enough:
                    break

    def for_rule(self, rule: Rule, tokenizer: Tokenizer, seed: int, enough: int | None = None) -> Iterable[Document]:
        if rule == "concat":
            return self.documents(tokenizer, seed, enough)
        return super().for_rule(rule, tokenizer, seed)

    def paper_documents(self, tokenizer: Tokenizer, seed: int) -> Sequence[Document]:
        return _Encoded(self.paper_texts(seed), tokenizer)

    def paper_joined(self, tokenizer: Tokenizer, seed: int) -> Iterator[Document]:
        for number, (origin, piece) in enumerate(_joined(self.paper_texts(seed))):
            yield Document(tuple(tokenizer.encode(piece, add_special_tokens=number == 0)), origin=origin)


class Texts(TextSource):
    """Texts that are there already, by origin."""

    def __init__(self, name: str, texts: Sequence[tuple[str, str]]) -> None:
        self.name, self._texts = name, texts

    def texts(self) -> Sequence[tuple[str, str]]:
        return self._texts


class ReadOnce(TextSource):
    """Another source, read once and kept in memory with its fingerprint."""

    def __init__(self, source: TextSource) -> None:
        self.name, self._fingerprint, self._texts = source.name, source.fingerprint(), list(source.texts())

    def texts(self) -> Sequence[tuple[str, str]]:
        return self._texts

    def fingerprint(self) -> str:
        return self._fingerprint


class _Encoded(Sequence[Document]):
    """Texts that are tokenised when they are looked at."""

    def __init__(self, texts: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> None:
        self._pieces = [(origin, piece) for origin, text in texts for piece in pieces_of(text)]
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        origin, piece = self._pieces[index]
        return Document(tuple(self._tokenizer.encode(piece, add_special_tokens=True)), origin=origin)


def pieces_of(text: str) -> list[str]:
    """The text in pieces of at most ``PIECE`` characters, each but the first beginning with white space where it can."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        cut = max(text.rfind(space, start + 1, start + PIECE + 1) for space in " \n\t")
        cut = cut if cut > start else start + PIECE
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]


def _joined(texts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """All texts with a space between them, in pieces of ``PIECE`` characters at most, each with its first text's origin.

    A piece ends where a text does, before the space, as far as texts are no longer than that themselves.
    """
    waiting: list[str] = []
    size, first = 0, texts[0][0]
    for number, (origin, text) in enumerate(texts):
        for piece in pieces_of(text if number == 0 else f" {text}"):
            if waiting and size + len(piece) > PIECE:
                yield first, "".join(waiting)
                waiting, size = [], 0
            if not waiting:
                first = origin
            waiting.append(piece)
            size += len(piece)
    yield first, "".join(waiting)
