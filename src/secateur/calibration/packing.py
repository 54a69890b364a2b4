"""From documents to samples of one length: the same two rules for every source, generated text included."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from secateur.calibration.sample import CalibrationSet, Sample
from secateur.errors import CalibrationError

Rule = Literal["concat", "document", "whole"]
"""``concat``: documents are joined and cut into windows, which may span documents. ``document``: one window of one
document that is long enough. ``whole``: a document as it is, cut at the length; samples differ in length."""

BosPolicy = Literal["none", "sample", "document"]
"""Where the begin token stands: nowhere, first in every sample, or first in every document."""


@dataclass(frozen=True)
class Document:
    """A text as tokens, without begin and end token. ``ended``: it is whole, so an end token may follow it.
    ``prompt_tokens``: how many of them the model was given rather than wrote."""

    token_ids: tuple[int, ...]
    ended: bool = True
    origin: str = ""
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Packing:
    """How samples of ``length`` tokens are made. ``bos`` and ``eos`` are token ids, ``None`` where the model has none.

    ``pool``: under ``concat``, windows are drawn from this many times the asked tokens, where the source has them.
    """

    length: int
    rule: Rule = "concat"
    bos_policy: BosPolicy = "sample"
    bos: int | None = None
    eos: int | None = None
    pool: int = 8

    @property
    def content(self) -> int:
        """Tokens of a sample that come from documents."""
        return self.length - (self.bos_policy == "sample" and self.bos is not None)

    def pack(self, documents: Iterable[Document], samples: int, seed: int, source: str) -> CalibrationSet:
        """Exactly ``samples`` samples, drawn by ``seed``; windows do not overlap.

        Raises ``CalibrationError`` with the counts when the documents do not yield as many.
        """
        rng = random.Random(seed)
        rules = {"concat": self._concat, "document": self._one_each, "whole": self._as_they_are}
        found, account = rules[self.rule](documents, samples, rng)
        if len(found) < samples:
            hint = (
                "take fewer or shorter samples, or a larger source"
                if not account.get("documents_too_short")
                else "use calibration.packing=concat, take shorter samples, or a source with longer documents"
            )
            raise CalibrationError(
                f"{samples} samples of {self.length} tokens were asked of {source!r}, but it yields {len(found)}: "
                + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in account.items())
                + f". To go on, {hint}."
            )
        return CalibrationSet(tuple(found), account)

    def _concat(
        self, documents: Iterable[Document], samples: int, rng: random.Random
    ) -> tuple[list[Sample], dict[str, int]]:
        stream: list[int] = []
        origins: list[tuple[int, str]] = []
        wanted, read = self.pool * samples * self.content, 0
        for document in documents:
            read += 1
            origins.append((len(stream), document.origin))
            stream += self._with_specials(document)
            if len(stream) >= wanted:
                break
        count = len(stream) // self.content
        chosen = rng.sample(range(count), min(samples, count))
        found = [
            self._sample(
                stream[index * self.content : (index + 1) * self.content], _origin(origins, index * self.content)
            )
            for index in chosen
        ]
        cut = len(stream) - len(found) * self.content
        return found, {"documents_read": read, "tokens_read": len(stream), "tokens_left_over": cut}

    def _one_each(
        self, documents: Iterable[Document], samples: int, rng: random.Random
    ) -> tuple[list[Sample], dict[str, int]]:
        found: list[Sample] = []
        read = short = tokens = 0
        for document in documents:
            if len(found) == samples:
                break
            ids = self._with_specials(document)
            read += 1
            tokens += len(ids)
            if len(ids) < self.content:
                short += 1
                continue
            start = rng.randint(0, len(ids) - self.content)
            found.append(self._sample(ids[start : start + self.content], document.origin))
        cut = tokens - len(found) * self.content
        return found, {
            "documents_read": read,
            "documents_too_short": short,
            "tokens_read": tokens,
            "tokens_left_over": cut,
        }

    def _as_they_are(
        self, documents: Iterable[Document], samples: int, rng: random.Random
    ) -> tuple[list[Sample], dict[str, int]]:
        found: list[Sample] = []
        read = cut = 0
        for document in documents:
            if len(found) == samples:
                break
            read += 1
            ids = self._with_specials(document)
            if not document.token_ids:
                continue
            begin = self.length - self.content + (self.bos_policy == "document" and self.bos is not None)
            sample = self._sample(ids[: self.content], document.origin)
            prompt = min(document.prompt_tokens and document.prompt_tokens + begin, len(sample.token_ids))
            found.append(replace(sample, prompt_tokens=prompt, finish="eos" if document.ended else "length"))
            cut += max(0, len(ids) - self.content)
        rng.shuffle(found)
        return found, {"documents_read": read, "tokens_cut": cut}

    def _with_specials(self, document: Document) -> list[int]:
        ids = list(document.token_ids)
        if self.bos_policy == "document" and self.bos is not None:
            ids.insert(0, self.bos)
        if document.ended and self.eos is not None:
            ids.append(self.eos)
        return ids

    def _sample(self, content: list[int], origin: str) -> Sample:
        first = [self.bos] if self.content < self.length and self.bos is not None else []
        return Sample(tuple(first + content), origin=origin)


def _origin(origins: list[tuple[int, str]], position: int) -> str:
    """The origin of the document that the token at ``position`` of the stream belongs to."""
    return origins[bisect.bisect_right(origins, position, key=lambda entry: entry[0]) - 1][1]
