"""Samples that hold what the model is later measured on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from weakref import WeakKeyDictionary

import numpy as np

from secateur.calibration.context import Context
from secateur.calibration.filters.base import SampleFilter, Verdict
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample
from secateur.errors import CalibrationError, UsageError

Index = Mapping[str, Mapping[int, np.ndarray]]
"""By source, by number of words: the sorted hashes of its n-grams, uint64."""

WORD = re.compile(r"[^\W_]+")
ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class ContaminationFilter(SampleFilter):
    """Drop the samples that share word n-grams with evaluation texts.

    ``against`` names the sources of the evaluation texts. Words are runs of letters and digits in lower case, so neither
    case nor punctuation nor spacing hides a copy. A sample goes when more than ``most`` of its distinct ``n``-grams of words
    stand in those texts; the value is how many do. A text of fewer than ``n`` words counts whole, as one n-gram of its own
    length; one of fewer than ``shortest`` (a heading, "yes") is no evidence and is left out.
    Source: Brown et al. 2020, arXiv 2005.14165, appendix C (13-grams; 8 words at least).
    Cost: the sources are read once, 8 bytes an n-gram (its 64-bit hash: a false hit has odds of about n-grams of the
    sources / 2^64); then linear in the words, once a sample: tens of ms on a slow core
    for 2,048 tokens.
    """

    against: list[str] = field(default_factory=list)
    n: int = 13
    most: int = 0
    shortest: int = 8

    def __post_init__(self) -> None:
        if not self.against:
            raise UsageError(
                "The contamination filter has nothing to compare with; name the sources of the evaluation texts, such as "
                "against: [eval.jsonl]."
            )
        if self.n < 1 or self.most < 0 or self.shortest < 1:
            raise UsageError(
                "The contamination filter needs n and shortest of at least 1 word and most of at least 0; found "
                f"n={self.n}, shortest={self.shortest}, most={self.most}."
            )

    @property
    def reads(self) -> Reads:
        return Reads(sources=tuple(self.against))

    def verdict(self, sample: Sample, text: str, context: Context) -> Verdict:
        if context not in self._indices:
            self._indices[context] = {source: self._read(source, context) for source in self.against}
        count, sources = shared_grams(_hashes(text), self._indices[context])
        reason = f"sharing word n-grams with {' and '.join(sources)}" if count > self.most else ""
        return Verdict(not reason, float(count), reason)

    @cached_property
    def _indices(self) -> WeakKeyDictionary[Context, Index]:
        """What was read, by the context that it was read through."""
        return WeakKeyDictionary()

    def _read(self, source: str, context: Context) -> dict[int, np.ndarray]:
        fewest = min(self.n, self.shortest)
        found: dict[int, list[np.ndarray]] = {}
        for text in context.source_texts(source):
            words = _hashes(text)
            if len(words) >= fewest:
                length = min(self.n, len(words))
                found.setdefault(length, []).append(_grams(words, length))
        if not found:
            raise CalibrationError(
                f"The source {source!r} holds no text of at least {fewest} words, so the contamination filter cannot compare "
                "with it; name another in against, or lower its shortest."
            )
        return {length: np.unique(np.concatenate(grams)) for length, grams in found.items()}


def shared_grams(words: np.ndarray, index: Index) -> tuple[int, list[str]]:
    """How many distinct n-grams of the words (as hashes) are in the index, and in which sources."""
    count, sources = 0, dict.fromkeys(index, False)
    for length in sorted({length for tables in index.values() for length in tables}):
        grams = np.unique(_grams(words, length))
        hit = np.zeros(len(grams), dtype=bool)
        for source, tables in index.items():
            here = _within(grams, tables.get(length, grams[:0]))
            sources[source] |= bool(here.any())
            hit |= here
        count += int(hit.sum())
    return count, [source for source, found in sources.items() if found]


def _within(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Which of the values are in the sorted table."""
    if not len(table):
        return np.zeros(len(values), dtype=bool)
    return table[np.searchsorted(table, values).clip(max=len(table) - 1)] == values


def _hashes(text: str) -> np.ndarray:
    words: Iterable[str] = WORD.findall(text.lower())
    return np.fromiter(map(_hash, words), dtype=np.uint64)


def _grams(words: np.ndarray, length: int) -> np.ndarray:
    """``sum_i hash(word_i) odd^(length - i)`` modulo 2^64 of every run of so many words."""
    count = max(0, len(words) - length + 1)
    found = np.zeros(count, dtype=np.uint64)
    for start in range(length):
        found = found * ODD + words[start : start + count]
    return found


@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    """64 bits of the word, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
