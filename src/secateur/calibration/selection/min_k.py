"""The samples that look most, or least, like what the model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection
from secateur.calibration.selection.ranking import lowest
from secateur.errors import UsageError


@dataclass(frozen=True)
class MinK(Selection):
    """The samples of highest (or lowest) Min-K %++.

    With ``mu`` and ``sigma`` the mean and deviation of ``log p(.|x_<t)`` under ``p(.|x_<t)`` itself, a token's value is
    ``(log p(x_t|x_<t) - mu) / sigma``, or without ``plus`` the plain ``log p(x_t|x_<t)``; a sample's is the mean over the
    ``share`` of its tokens with the lowest values. High values mean that it is likely to have been trained on; ``side``
    ``high`` takes those, ``low`` the others.
    Cost: one forward a sample of the pool.
    Source: Zhang et al. 2024, arXiv 2404.02936; Min-K %: Shi et al. 2023, arXiv 2310.16789. The measure, with share 0.5, is
    that of Ji et al. 2024, arXiv 2410.17711; to select by it is ours.
    """

    pool: float = 4.0
    share: float = 0.5
    side: Literal["high", "low"] = "high"
    plus: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UsageError(
                f"The share of the selection min-k is above 0 and at most 1, of a sample's tokens; found {self.share}."
            )
        if self.side not in ("high", "low"):
            raise UsageError(f"The side of the selection min-k is high or low; found {self.side!r}.")

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        values = context.min_k(samples, self.share, self.plus)
        sign = -1.0 if self.side == "high" else 1.0
        return Choice(lowest([sign * value for value in values], count, "Min-K % value"), values)
