"""From documents to samples of one length: the same rules for every source, generated text included."""

from __future__ import annotations

import bisect
import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from secateur.calibration.document import Document
from secateur.calibration.paper_packing import joined, long_documents
from secateur.calibration.sample import CalibrationSet, Sample
from secateur.errors import CalibrationError

PaperRule = Literal["paper-document", "paper-joined"]
"""The two ways of the paper's program (``paper_packing``): random windows of random long documents, and random windows
of all texts joined. They may overlap, and special tokens stand where the tokenizer puts them."""

Rule = Literal["concat", "document", "whole", "paper", PaperRule]
"""``concat``: documents are joined and cut into windows, which may span documents. ``document``: one window of one
document that is long enough. ``whole``: a document as it is, cut at the length; samples differ in length. ``paper``:
whichever of its two rules the paper has for the source (``Packing.of``)."""

PAPER_RULES = ("paper", "paper-document", "paper-joined")

BosPolicy = Literal["none", "sample", "document", "tokenizer"]
"""Where the begin token stands: nowhere, first in every sample, first in every document, or (the paper's rules) already
among a document's tokens, as the tokenizer has it."""

Draw = Callable[[Any, int, random.Random], tuple[list[Sample], dict[str, int]]]
"""Documents, how many samples, and what draws: the samples and an account of them."""


@dataclass(frozen=True)
class Packing:
    """How samples of ``length`` tokens are made. ``bos`` and ``eos`` are token ids, ``None`` where the model has none.

    ``pool``: under ``concat``, windows are drawn from this many times the asked tokens, and a text gives at most this many
    windows to them, where the source has others: else a set would be of the few longest texts.
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

    def pool_tokens(self, samples: int) -> int:
        """So many tokens are drawn from under ``concat``; no text gives more."""
        return self.pool * samples * self.content

    def of(self, own: PaperRule) -> Packing:
        """The packing of one source, ``own`` being the paper's rule for it."""
        return replace(self, rule=own) if self.rule == "paper" else self

    def pack(self, documents: Iterable[Document], samples: int, seed: int, source: str) -> CalibrationSet:
        """Exactly ``samples`` samples, drawn by ``seed``; windows overlap under the paper's rules only.

        ``documents``: a sequence under ``paper-document``. Raises ``CalibrationError`` with the counts when they do not
        yield as many.
        """
        rng, seen = random.Random(seed), set[int]()
        rules: dict[str, Draw] = {
            "concat": self._concat,
            "document": self._one_each,
            "whole": self._as_they_are,
            "paper-document": partial(long_documents, self.length),
            "paper-joined": partial(joined, self.length),
        }
        read = documents if self.rule in PAPER_RULES else _noting(documents, seen)
        found, account = rules[self.rule](read, samples, rng)
        if len(found) < samples:
            hint = "take fewer or shorter samples, or a larger source"
            if self.rule == "paper-joined":
                hint = "take shorter samples, or a larger source: its texts joined must have more tokens than a sample"
            elif account.get("documents_too_short"):
                hint = "use calibration.packing=concat, take shorter samples, or a source with longer documents"
            raise CalibrationError(
                f"{samples} samples of {self.length} tokens were asked of {source!r}, but it yields {len(found)}: "
                + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in account.items())
                + f". To go on, {hint}."
            )
        account |= {} if self.rule in PAPER_RULES else {"distinct_documents": len(seen)}
        account |= {"windows": len(found), "distinct_windows": len({sample.token_ids for sample in found})}
        return CalibrationSet(tuple(found), account)

    def _concat(
        self, documents: Iterable[Document], samples: int, rng: random.Random
    ) -> tuple[list[Sample], dict[str, int]]:
        texts: list[tuple[array[int], Document]] = []
        wanted, most = self.pool_tokens(samples), self.pool * self.content
        missing = wanted
        for document in documents:
            if document.begun or not texts:
                texts.append((array("q"), document))
            text, before = texts[-1][0], len(texts[-1][0])
            text.extend(self._with_specials(document))
            missing -= min(len(text), most) - min(before, most) if _is_text(document) else len(text) - before
            goes_on = document.part and not document.ended and len(text) < wanted
            if missing <= 0 and not goes_on:
                break
        most = _level([len(ids) for ids, _ in texts], wanted, most)
        stream: list[int] = []
        origins: list[tuple[int, str]] = []
        for ids, document in texts:
            origins.append((len(stream), document.origin))
            cut = _is_text(document) and len(ids) > most
            start = rng.randint(0, len(ids) - most) if cut else 0
            stream += ids[start : start + most] if cut else ids
        read, tokens = len(texts), sum(len(ids) for ids, _ in texts)
        count = len(stream) // self.content
        chosen = rng.sample(range(count), min(samples, count))
        found = [
            self._sample(
                stream[index * self.content : (index + 1) * self.content], _origin(origins, index * self.content)
            )
            for index in chosen
        ]
        return found, {
            "documents_read": read,
            "tokens_read": tokens,
            "tokens_left_over": tokens - len(found) * self.content,
        }

    def _one_each(
        self, documents: Iterable[Document], samples: int, rng: random.Random
    ) -> tuple[list[Sample], dict[str, int]]:
        found: list[Sample] = []
        read = short = tokens = 0
        for document in documents:
            ids = self._with_specials(document)
            read += 1
            tokens += len(ids)
            if len(ids) < self.content:
                short += 1
                continue
            start = rng.randint(0, len(ids) - self.content)
            found.append(self._sample(ids[start : start + self.content], document.origin))
            if len(found) == samples:
                break
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
            read += 1
            ids = self._with_specials(document, document.end)
            if not document.token_ids:
                continue
            own = self.bos_policy == "document" and self.bos is not None and document.begun
            begin = self.length - self.content + own
            sample = self._sample(ids[: self.content], document.origin)
            prompt = min(document.prompt_tokens and document.prompt_tokens + begin, len(sample.token_ids))
            ended = document.ended and len(ids) <= self.content
            found.append(replace(sample, prompt_tokens=prompt, finish="eos" if ended else "length"))
            cut += max(0, len(ids) - self.content)
            if len(found) == samples:
                break
        rng.shuffle(found)
        return found, {"documents_read": read, "tokens_cut": cut}

    def _with_specials(self, document: Document, end: int | None = None) -> list[int]:
        """Begin and end token added, the end being ``end`` if given."""
        end = self.eos if end is None else end
        ids = list(document.token_ids)
        if self.bos_policy == "document" and self.bos is not None and document.begun:
            ids.insert(0, self.bos)
        if document.ended and end is not None:
            ids.append(end)
        return ids

    def _sample(self, content: list[int], origin: str) -> Sample:
        first = [self.bos] if self.content < self.length and self.bos is not None else []
        return Sample(tuple(first + content), origin=origin)


def _is_text(document: Document) -> bool:
    """What has no end, and is no part of what has one, is no text: random tokens."""
    return document.ended or document.part


def _level(lengths: Sequence[int], wanted: int, least: int) -> int:
    """The most tokens that each of these texts gives, so that together they give ``wanted``: ``least``, or as many as it takes."""
    left = wanted
    for place, length in enumerate(sorted(lengths)):
        share = math.ceil(left / (len(lengths) - place))
        if length >= share:
            return max(least, share)
        left -= length
    return max(lengths, default=least)


def _noting(documents: Iterable[Document], seen: set[int]) -> Iterator[Document]:
    """The documents as they come; ``seen`` gets a hash of each."""
    for document in documents:
        seen.add(hash(document.token_ids))
        yield document


def _origin(origins: list[tuple[int, str]], position: int) -> str:
    """The origin of the document that the token at ``position`` of the stream belongs to."""
    return origins[bisect.bisect_right(origins, position, key=lambda entry: entry[0]) - 1][1]
