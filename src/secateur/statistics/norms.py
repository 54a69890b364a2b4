"""Column norms: how large each input channel is over the calibration tokens (Wanda's statistic)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.statistics.base import Statistic


class ColumnNorms(Statistic):
    """``sum over tokens of x_j^2`` per input channel j; fp32 within a batch, fp64 across batches.

    Cost: 2 FLOPs per token and input, 8 bytes per input.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(inputs, device)
        self.squares = torch.zeros(inputs, dtype=torch.float64, device=self.device)

    def add(self, rows: Tensor, weight: float = 1) -> None:
        self.squares += weight * rows.float().square().sum(dim=0).double()

    def sums(self) -> list[Tensor]:
        return [self.squares]

    def finite(self) -> bool:
        return bool(self.squares.isfinite().all())

    def norms(self) -> Tensor:
        """``||X_j||_2 / sqrt(tokens)``: the root mean square of each channel, fp32 ``[inputs]``."""
        return (self.squares / (self.tokens or 1)).sqrt().float()
