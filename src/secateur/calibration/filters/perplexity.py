"""The paper's filter: the generations the model itself finds least likely are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from secateur.calibration.context import Context
from secateur.calibration.filters.base import Filter, Verdict
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample
from secateur.errors import CalibrationError, UsageError


@dataclass(frozen=True)
class PerplexityFilter(Filter):
    """Drop the samples of highest perplexity (or lowest, both, or outside bounds).

    ``drop`` is the share that goes (rounded down; of equal ones the later goes first) from ``side``: ``high``, ``low``, or
    ``both``, half of it from each, each half rounded down. Samples below ``lowest`` or above ``highest`` go before that, and
    the share is of the rest. Perplexity is ``exp(-mean log p)`` over the whole sample after its begin token (its first,
    where the model's tokenizer puts none before text), under the model being pruned, or under ``model``, which reads the text. Cost: one forward of each sample that was not scored before.
    Source: Ji et al. 2024, arXiv 2410.17711, section 4 (the highest 20 %).
    """

    drop: float = 0.2
    side: Literal["high", "low", "both"] = "high"
    lowest: float | None = None
    highest: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UsageError(f"The perplexity filter's drop is a share of at least 0 and below 1; found {self.drop}.")
        if self.side not in ("high", "low", "both"):
            raise UsageError(f"The perplexity filter's side is high, low or both; found {self.side!r}.")
        low, high = self._bounds
        if not 0 <= low < high or math.isinf(low):
            raise UsageError(
                "The perplexity filter's bounds are perplexities, lowest below highest; found "
                f"lowest={self.lowest}, highest={self.highest}."
            )

    @property
    def keeps(self) -> float:
        return 1 - self.drop

    @property
    def _bounds(self) -> tuple[float, float]:
        return 0.0 if self.lowest is None else self.lowest, math.inf if self.highest is None else self.highest

    @property
    def reads(self) -> Reads:
        return Reads(models=(self.model,) if self.model else ())

    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        values = [math.exp(-value) for value in context.mean_logprobs(samples, self.model)]
        finite = sum(map(math.isfinite, values))
        if finite < len(samples):
            raise CalibrationError(
                f"{len(samples) - finite} of {len(samples)} samples have no finite perplexity, so they cannot be ranked; "
                "the model's outputs may not be finite in this dtype."
            )
        reasons = self._outside(values)
        rest = [index for index in range(len(values)) if index not in reasons]
        reasons |= self._extremes(rest, values)
        return [Verdict(index not in reasons, value, reasons.get(index, "")) for index, value in enumerate(values)]

    def _outside(self, values: Sequence[float]) -> dict[int, str]:
        """Which samples are outside the bounds, and why they go."""
        low, high = self._bounds
        below = {index: f"of perplexity below {low:g}" for index, value in enumerate(values) if value < low}
        return below | {index: f"of perplexity above {high:g}" for index, value in enumerate(values) if value > high}

    def _extremes(self, rest: Sequence[int], values: Sequence[float]) -> dict[int, str]:
        """Which of the rest are the share to drop, and why they go."""
        share = self.drop / 2 if self.side == "both" else self.drop
        count = math.floor(len(rest) * share + 1e-9)
        found: dict[int, str] = {}
        for side, sign in (("high", -1), ("low", 1)):
            if self.side in (side, "both"):
                left = sorted((index for index in rest if index not in found), key=lambda i: (sign * values[i], -i))
                found |= dict.fromkeys(left[:count], f"among the {100 * share:g}% of {side}est perplexity")
        return found
