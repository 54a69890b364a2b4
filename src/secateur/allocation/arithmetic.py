"""ATP: block sparsities in arithmetic progression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.allocation.balance import block_weights, bounds, by_block
from secateur.allocation.base import Allocation, LinearSize, Measured
from secateur.errors import UsageError
from secateur.masks.pattern import Pattern


@dataclass(frozen=True)
class Arithmetic(Allocation):
    """Later blocks are pruned more, in equal steps; no data.

    Sparsity of block l of L: ``target + spread * (x_l - mean x)`` with ``x_l = 2 l / (L - 1) - 1`` and the mean weighted
    by the blocks' weights, so that errors of early blocks, which all later ones inherit, are small. Every linear of a
    block gets the same. In the paper's terms the common difference is ``2 * spread / (L - 1)``. A spread that would take
    a block below 0 or above 0.99 is narrowed until none is, which keeps the progression. A pruned output head counts
    as one block more, the last.
    Cost: none. Source: Huang et al. 2025 (ATP), arXiv 2502.14770; it tries a few differences and keeps the best.
    """

    spread: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 0.5:
            raise UsageError(f"The allocation 'arithmetic' needs 0 <= spread <= 0.5; found {self.spread}.")

    def sparsities(
        self, linears: Sequence[LinearSize], target: float, measured: Sequence[Measured], pattern: Pattern
    ) -> Mapping[str, float]:
        weights = block_weights(linears, {linear.block for linear in linears})
        place = np.array(list(weights), float)
        x = 2 * (place - place.min()) / max(np.ptp(place), 1.0) - 1
        offsets = self.spread * (x - np.average(x, weights=list(weights.values())))
        low, high = bounds(target)
        reach = max(offsets.max() / max(high - target, 1e-300), -offsets.min() / max(target - low, 1e-300), 1.0)
        found = np.clip(target + offsets / reach, low, high)  # it is in there but for rounding
        return by_block(linears, dict(zip(weights, found, strict=True)), target)
