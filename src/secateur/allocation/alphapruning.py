"""AlphaPruning: sparsity per block from how heavy-tailed the spectra of its weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secateur.allocation.balance import block_weights, bounds, by_block, scaled
from secateur.allocation.base import Allocation, LinearSize, Measured
from secateur.errors import NumericsError, UsageError
from secateur.masks.pattern import Pattern
from secateur.statistics import InputStatistics

BINS, LEAST_BINS, PER_BIN = 100, 10, 40  # fewer bins for few eigenvalues, or the fullest would be one by chance
NOISE = 1e-10  # eigenvalues below this share of the greatest are rounding of zeros


@dataclass(frozen=True)
class AlphaPruning(Allocation):
    """Blocks whose weight spectra have heavier tails are pruned less; no data.

    The eigenvalues ``lambda_1 <= ... <= lambda_n`` of the smaller of ``W W^T`` and ``W^T W`` have a tail
    ``p(x) ~ x^-alpha`` from the peak of their histogram on, over equal bins of log lambda: 100 as in the original, or
    fewer, n / 40, for small matrices. With ``lambda_{n-k}`` the smallest eigenvalue in the fullest bin, Hill's estimate
    is ``alpha = 1 + k / sum_{i > n-k} ln(lambda_i / lambda_{n-k})``. The mean alpha of a block's linears is mapped
    linearly to ``[1 - spread, 1 + spread]`` over the blocks; those factors times one number (the target, or near it)
    are the sparsities, whose mean weighted by weights is exact. None passes 0.99. Linears outside the blocks, such as
    the head, get the target. The original program further moves the cut from the peak by a Kolmogorov-Smirnov search;
    the paper does not. Spectra of a few hundred eigenvalues make noisy estimates: use a small spread there.
    Cost for W ``[out, in]``, n = min(out, in): 2 * n * out * in + about 1.5 * n^3 FLOPs and 8 * (out * in + 2 * n^2)
    bytes, fp64. Source: Lu et al. 2024, arXiv 2410.10912, section 3.
    """

    spread: float = 0.3

    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 1:
            raise UsageError(f"The allocation 'alphapruning' needs 0 <= spread < 1; found {self.spread}.")

    def measure(self, weights: Mapping[str, Tensor], stats: Mapping[str, InputStatistics]) -> Measured:
        found: dict[str, float] = {}
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                raise NumericsError(f"The weights of {name} are not all finite, so their spectrum cannot be measured.")
            found[name] = tail_index(spectrum(weight))
        # A matrix that is zero, or whose singular values are all equal, has no tail.
        return {name: alpha for name, alpha in found.items() if math.isfinite(alpha)}

    def sparsities(
        self, linears: Sequence[LinearSize], target: float, measured: Sequence[Measured], pattern: Pattern
    ) -> Mapping[str, float]:
        alphas = {block: float(np.mean(list(found.values()))) for block, found in enumerate(measured) if found}
        weights = block_weights(linears, alphas)
        if not weights:
            return by_block(linears, {}, target)
        alpha = np.array([alphas[block] for block in weights])
        centred = (alpha - alpha.min()) / np.ptp(alpha) * 2 - 1 if np.ptp(alpha) else np.zeros(len(alpha))
        found = scaled(1 + self.spread * centred, list(weights.values()), target, *bounds(target))
        return by_block(linears, dict(zip(weights, found, strict=True)), target)


def spectrum(weight: Tensor) -> Tensor:
    """The positive eigenvalues of the smaller Gram matrix of ``weight`` ``[out, in]``, fp64, ascending."""
    # In fp64: a Gram matrix squares the condition number, and in fp32 the small half of the spectrum would be noise.
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.T.double()
    values = torch.linalg.eigvalsh(wide @ wide.T)
    return values[values > NOISE * values[-1].clamp(min=0)]


def tail_index(eigenvalues: Tensor) -> float:
    """Hill's estimate of the power-law exponent of ascending ``eigenvalues`` from their peak on; ``inf`` for no tail."""
    if not len(eigenvalues):
        return math.inf
    logs = eigenvalues.log().cpu().numpy()
    counts, edges = np.histogram(logs, min(BINS, max(LEAST_BINS, len(logs) // PER_BIN)))
    tail = logs[np.searchsorted(logs, edges[np.argmax(counts)]) :]
    excess = float((tail - tail[0]).sum())
    return 1 + (len(tail) - 1) / excess if excess > 0 else math.inf
