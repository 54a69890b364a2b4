"""The Gram matrix of a linear's inputs: the Hessian of its layer-wise squared error, up to a constant."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.statistics.base import Statistic


class Gram(Statistic):
    """``sum over tokens of x x^T`` ``[inputs, inputs]`` in fp32.

    Cost: 2 * inputs^2 FLOPs per token, 4 * inputs^2 bytes.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(inputs, device)
        self.matrix = torch.zeros(inputs, inputs, dtype=torch.float32, device=self.device)

    def add(self, rows: Tensor) -> None:
        rows = rows.float()
        self.matrix.addmm_(rows.T, rows)

    def finite(self) -> bool:
        # One infinite or undefined entry in a row of X reaches the diagonal.
        return bool(self.matrix.diagonal().isfinite().all())

    def mean(self) -> Tensor:
        """``X^T X / tokens``, fp32 ``[inputs, inputs]``."""
        return self.matrix / max(self.tokens, 1)
