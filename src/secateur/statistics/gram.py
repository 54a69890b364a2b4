"""The Gram matrix of a linear's inputs: the Hessian of its layer-wise squared error, up to a constant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from secateur.statistics.base import Statistic

PANELS_AT_MOST, NARROWEST_PANEL = 8, 128


class Gram(Statistic):
    """``sum over tokens of x x^T`` ``[inputs, inputs]`` in fp32.

    Only the lower triangle is summed, panel by panel, and mirrored when the matrix is read. Products of bf16 inputs are
    exact in fp32, so a machine with bf16 matrix units may take them there; the sums stay in fp32.
    Cost: (1 + 1/panels) * inputs^2 FLOPs per token, 4 * inputs^2 bytes.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(inputs, device)
        self._lower = torch.zeros(inputs, inputs, dtype=torch.float32, device=self.device)
        panels = max(1, min(PANELS_AT_MOST, inputs // NARROWEST_PANEL))
        self._edges = [inputs * panel // panels for panel in range(panels + 1)]
        self._mirrored = True

    def add(self, rows: Tensor, weight: float = 1) -> None:
        exact_in_bf16 = rows.dtype == torch.bfloat16
        rows = rows.float()
        with _bf16_products(exact_in_bf16):
            for start, stop in pairwise(self._edges):
                self._lower[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop], alpha=weight)
        self._mirrored = False

    @property
    def matrix(self) -> Tensor:
        """The whole symmetric matrix, fp32 ``[inputs, inputs]``; not to be changed."""
        if not self._mirrored:
            with torch.inference_mode():  # the sums were made in it
                for start, stop in pairwise(self._edges):
                    self._lower[:start, start:stop] = self._lower[start:stop, :start].T
            self._mirrored = True
        return self._lower

    def sums(self) -> list[Tensor]:
        return [self._lower]

    def permuted(self, order: Tensor) -> Gram:
        found, order = Gram(self.inputs, self.device), order.to(self.device)
        torch.index_select(self.matrix.index_select(0, order), 1, order, out=found._lower)
        found.tokens = self.tokens
        return found

    def finite(self) -> bool:
        # One infinite or undefined entry in a row of X reaches the diagonal.
        return bool(self._lower.diagonal().isfinite().all())

    def energy(self, rows: Tensor) -> float:
        """``tr(rows G rows^T)``: the squared outputs of ``rows`` ``[any, inputs]`` fp32, summed over tokens and rows.

        Cost: 2 * rows * inputs^2 FLOPs.
        """
        return ((rows @ self.matrix) * rows).sum(dtype=torch.float64).item()

    def mean(self) -> Tensor:
        """``X^T X / tokens``, fp32 ``[inputs, inputs]``."""
        return self.matrix / (self.tokens or 1)


@contextmanager
def _bf16_products(allowed: bool) -> Iterator[None]:
    """Let fp32 matrix products round their factors to bf16 (and sum in fp32) where the factors are bf16 already."""
    before = torch.get_float32_matmul_precision()
    if allowed:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        if allowed:
            torch.set_float32_matmul_precision(before)
