"""The paper's filter: the generations the model itself finds least likely are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.filters.base import Filter, Verdict
from secateur.calibration.sample import Sample
from secateur.errors import CalibrationError, UsageError


@dataclass(frozen=True)
class PerplexityFilter(Filter):
    """Drop the samples of highest perplexity.

    ``drop`` is the share that goes (rounded down; of equal ones the later goes first). Perplexity is
    ``exp(-mean log p)`` over the whole sample after its first token, under the model being pruned.
    Source: Ji et al. 2024, arXiv 2410.17711, section 4.
    """

    drop: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UsageError(f"The perplexity filter's drop is a share of at least 0 and below 1; found {self.drop}.")

    @property
    def keeps(self) -> float:
        return 1 - self.drop

    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        found = [math.exp(-value) for value in context.mean_logprobs(samples)]
        values = [value for value in found if math.isfinite(value)]
        if len(values) < len(samples):
            raise CalibrationError(
                f"{len(samples) - len(values)} of {len(samples)} samples have no finite perplexity, so they cannot be ranked; "
                "the model's outputs may not be finite in this dtype."
            )
        order = sorted(range(len(values)), key=lambda index: (values[index], index))
        dropped = set(order[len(values) - math.floor(len(values) * self.drop + 1e-9) :])
        return [
            Verdict(
                index not in dropped, value, f"among the {self.drop:.0%} of highest perplexity" * (index in dropped)
            )
            for index, value in enumerate(values)
        ]
