"""Samples that are there already, word for word or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.calibration.context import Context
from secateur.calibration.filters.base import Filter, Verdict
from secateur.calibration.sample import Sample
from secateur.errors import UsageError

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

SEED = 1
"""Of the permutations: the same in every run, so that the same samples go."""
MISSED = 0.05
"""The highest chance that a pair of exactly the asked similarity is not found."""
FEWEST_PERMUTATIONS = 16


@dataclass(frozen=True)
class DuplicatesFilter(Filter):
    """Drop the samples that are the same as an earlier one, or nearly.

    The same: equal ids. Nearly: of the sets of token ``n``-grams A and B, ``|A & B| / |A | B|`` (Jaccard) is at least
    ``similarity``; 1.0 leaves only equal ids. The first stays; later ones are compared with those that stayed. A sample
    below ``n`` tokens is one gram. The value is the highest similarity found, 0 where no candidate was.

    Candidates come from MinHash and its index of bands (Broder 1997; datasketch). An estimate from so many
    ``permutations`` is off by about ``1 / sqrt(permutations)`` (a standard error of ``sqrt(s (1 - s) / permutations)``, 0.035
    at s = 0.8 of 128), so candidates are then compared exactly: nothing goes that is less similar, and a pair of just
    ``similarity`` is missed with a chance of at most 5 % where the permutations suffice, a more similar one with less.
    Cost: once a sample, tens of ms on a slow core for 2,048 tokens; then an index lookup a judgement.
    """

    similarity: float = 0.8
    permutations: int = 128
    n: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise UsageError(
                f"The duplicates filter's similarity is above 0 and at most 1 (equal ids only); found {self.similarity}."
            )
        if self.permutations < FEWEST_PERMUTATIONS or self.n < 1:
            raise UsageError(
                f"The duplicates filter needs at least {FEWEST_PERMUTATIONS} permutations and n-grams of at least 1 token; "
                f"found permutations={self.permutations}, n={self.n}."
            )

    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        verdicts: list[Verdict] = []
        seen: set[tuple[int, ...]] = set()
        index = None if self.similarity == 1 else self._index()
        for number, sample in enumerate(samples):
            ids, value, reason = sample.token_ids, 0.0, ""
            if ids in seen:
                value, reason = 1.0, "the same as an earlier sample"
            elif index is not None:
                sketch = self._sketch(ids)
                found: list[Any] = index.query(sketch)
                near = [samples[other].token_ids for other in found]
                value = self._closest(ids, near)
                if value >= self.similarity:
                    reason = f"at least {self.similarity:g} similar to an earlier sample"
                else:
                    index.insert(number, sketch)
            seen.add(ids)
            verdicts.append(Verdict(not reason, value, reason))
        return verdicts

    @cached_property
    def _sketches(self) -> dict[tuple[int, ...], MinHash]:
        """What was sketched before: every judgement is of all samples so far."""
        return {}

    def _sketch(self, ids: tuple[int, ...]) -> MinHash:
        from datasketch import MinHash

        if ids not in self._sketches:
            sketch = MinHash(self.permutations, SEED)
            sketch.update_batch(self._grams(ids))
            self._sketches[ids] = sketch
        return self._sketches[ids]

    def _index(self) -> MinHashLSH:
        """Bands of as many rows as still find all but ``MISSED`` of the pairs: more rows, fewer candidates in vain."""
        from datasketch import MinHashLSH

        rows = 1
        for more in range(2, self.permutations // 2 + 1):
            if (1 - self.similarity**more) ** (self.permutations // more) <= MISSED:
                rows = more
        return MinHashLSH(num_perm=self.permutations, params=(self.permutations // rows, rows))

    def _closest(self, ids: tuple[int, ...], others: Sequence[tuple[int, ...]]) -> float:
        own = self._grams(ids) if others else set()
        found = [self._grams(other) for other in others]
        return max((len(own & grams) / len(own | grams) for grams in found), default=0.0)

    def _grams(self, ids: tuple[int, ...]) -> set[bytes]:
        array = np.asarray(ids, dtype=np.int64)
        if len(ids) < self.n:
            return {array.tobytes()}
        return {gram.tobytes() for gram in np.lib.stride_tricks.sliding_window_view(array, self.n)}
