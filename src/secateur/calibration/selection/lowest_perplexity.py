"""The samples that a model finds likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection
from secateur.calibration.selection.ranking import lowest


@dataclass(frozen=True)
class LowestPerplexity(Selection):
    """The samples of lowest perplexity.

    ``exp(-mean log p)`` over a sample after its begin or first token, under the model the set is for, or under ``model`` (a Hub id
    or a folder), which reads the samples' text.
    Cost: one forward a sample of the pool.
    Source: the baseline in Monaco et al. 2026, arXiv 2603.16105.
    """

    pool: float = 4.0
    model: str | None = None

    @property
    def reads(self) -> Reads:
        return Reads(models=(self.model,) if self.model else ())

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        values = [math.exp(-value) for value in context.mean_logprobs(samples, self.model)]
        return Choice(lowest(values, count, "perplexity"), values)
