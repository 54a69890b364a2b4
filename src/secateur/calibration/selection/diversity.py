"""The samples that repeat each other least."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection
from secateur.calibration.selection.ranking import lowest
from secateur.errors import UsageError


@dataclass(frozen=True)
class Diversity(Selection):
    """Greedily the sample whose n-grams are least present in what is chosen.

    The score of a sample is the share of its ``ngram``-grams of token ids that a chosen one has, plus ``balance`` times the
    rank of its perplexity in the pool (0 the lowest, 1 the highest); the lowest score is next (of equal ones the earlier).
    A negative balance prefers high perplexity. A sample's value is its score when it was chosen, or at the end.
    Cost: no model with balance 0, else one forward a sample of the pool.
    Source: after IGSP, Xu et al. 2026, arXiv 2606.03328, which makes self-generated sets of little 4-gram aggregation and
    balances perplexity over prompts for several capabilities. Ours, not theirs: that it is a selection, this score, and that
    it knows of no capabilities.
    """

    pool: float = 4.0
    ngram: int = 4
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ngram < 1:
            raise UsageError(
                f"The ngram of the selection diversity is a number of tokens, at least 1; found {self.ngram}."
            )
        if not math.isfinite(self.balance):
            raise UsageError(f"The balance of the selection diversity is a finite number; found {self.balance}.")

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        grams = ngrams(samples, self.ngram)
        seen = np.zeros(1 + max(int(own.max()) for own in grams), dtype=bool)
        extra = self._extra(samples, context)

        def score(index: int) -> float:
            return float(seen[grams[index]].mean()) + extra[index]

        # Shares only grow, so an old score is a lower bound: what is lowest by its new one is the lowest of all.
        queue = [(extra[index], index) for index in range(len(samples))]
        heapq.heapify(queue)
        values = [0.0] * len(samples)
        chosen: list[int] = []
        while len(chosen) < count:
            bound, index = heapq.heappop(queue)
            values[index] = score(index)
            if values[index] > bound:
                heapq.heappush(queue, (values[index], index))
                continue
            chosen.append(index)
            seen[grams[index]] = True
        for _, index in queue:
            values[index] = score(index)
        return Choice(chosen, values)

    def _extra(self, samples: Sequence[Sample], context: Context) -> list[float]:
        """What the perplexity adds to each score."""
        if not self.balance:
            return [0.0] * len(samples)
        order = lowest([-value for value in context.mean_logprobs(samples)], len(samples), "perplexity")
        ranks = {index: rank for rank, index in enumerate(order)}
        return [self.balance * ranks[index] / max(1, len(samples) - 1) for index in range(len(samples))]


def ngrams(samples: Sequence[Sample], size: int) -> list[np.ndarray]:
    """The different n-grams of each sample as numbers, int64; a shorter sample is one of its own."""
    numbers: dict[tuple[int, ...], int] = {}
    found = []
    for sample in samples:
        ids = sample.token_ids
        own = {ids[start : start + size] for start in range(max(1, len(ids) - size + 1))}
        found.append(np.array(sorted(numbers.setdefault(gram, len(numbers)) for gram in own), dtype=np.int64))
    return found
