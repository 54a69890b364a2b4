"""Mean and variance of each input channel (DSnoT's statistics)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.statistics.base import Statistic


class Moments(Statistic):
    """Sums of ``x_j`` and ``x_j^2`` per input channel j; fp32 about the mean within a batch, fp64 across batches.

    Squares are summed about the batch's mean and moved to zero in fp64, so a channel whose mean is far larger than its
    spread keeps its variance. Cost: 5 FLOPs per token and input, 16 bytes per input.

    The original DSnoT holds the mean over samples of a sample's *sum* of tokens, which is ``E[x_j]`` times the
    tokens per sample, and the mean of the variances *within* samples, which leaves out how the samples' means differ:
    a number that changes with how the tokens were cut into samples, as no statistic here does.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(inputs, device)
        self.totals = torch.zeros(inputs, dtype=torch.float64, device=self.device)
        self.squares = torch.zeros(inputs, dtype=torch.float64, device=self.device)

    def add(self, rows: Tensor, weight: float = 1) -> None:
        if not rows.shape[0]:
            return  # the mean of no tokens is NaN
        rows = rows.float()
        center = rows.mean(dim=0)
        around = rows - center
        total, center = around.sum(dim=0).double(), center.double()  # the total is not quite 0: fp32 rounded the mean
        self.totals += weight * (total + rows.shape[0] * center)
        self.squares += weight * (around.square_().sum(dim=0).double() + center * (2 * total + rows.shape[0] * center))

    def sums(self) -> list[Tensor]:
        return [self.totals, self.squares]

    def finite(self) -> bool:
        return bool(self.totals.isfinite().all() and self.squares.isfinite().all())

    def mean(self) -> Tensor:
        """``E[x_j]``, fp32 ``[inputs]``."""
        return (self.totals / (self.tokens or 1)).float()

    def variance(self) -> Tensor:
        """``E[(x_j - E[x_j])^2]`` over all tokens, fp32 ``[inputs]``."""
        count = self.tokens or 1
        return (self.squares / count - (self.totals / count).square()).clamp_(min=0).float()
