"""OWL: outlier-weighed sparsity per block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secateur.allocation.balance import Floats, block_weights, bounds, by_block, shifted
from secateur.allocation.base import Allocation, LinearSize, Measured
from secateur.errors import UsageError
from secateur.masks.pattern import Pattern
from secateur.methods.wanda import Wanda
from secateur.statistics import ColumnNorms, InputStatistics, Statistic


@dataclass(frozen=True)
class OWL(Allocation):
    """Blocks with more outliers among their Wanda scores are pruned less.

    ``D_l = 100 * mean(S > outlier * mean(S))`` over the scores ``S = |W_ij| * ||X_j||_2`` of all linears of block l, and
    ``density_l = 2 * spread * (y_l - mean y) + 1 - target`` with ``y_l = (D_l - min D) / (max D - min D)``: the blocks
    lie ``2 * spread`` apart at most. Here the mean of y is weighted by the weights to prune in each block, which makes
    the mean sparsity exact where the original's is so only for blocks of one size; densities below 0.01 become that,
    and all others move together to make up for it. Linears outside the blocks, such as the head, get the target.

    With a pattern ``mixed N:M``: ``M - N - round(mixed_spread * (y_l - mean y))`` of M weights go, at least 1 and at most
    M - 1, with ``mixed_outlier`` in place of ``outlier``. The mean is then only near the target, and since the blocks
    differ, hardware made for one N:M cannot use the whole. The mean of y is plain here, as in the original.
    Cost: two passes over W of every linear (4 bytes a weight, one linear at a time), after a run of the dense model over
    the calibration data. Source: Yin et al. 2024, arXiv 2310.05175.
    """

    spread: float = 0.08
    outlier: float = 5.0
    mixed_spread: float = 2.0
    mixed_outlier: float = 6.0

    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorms,)
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 0.5 or not 0 <= self.mixed_spread < np.inf:
            raise UsageError(
                "The allocation 'owl' needs 0 <= spread <= 0.5 and mixed_spread >= 0; "
                f"found spread {self.spread} and mixed_spread {self.mixed_spread}."
            )
        if not 0 < self.outlier < np.inf or not 0 < self.mixed_outlier < np.inf:
            raise UsageError(
                "The allocation 'owl' needs outlier > 0 and mixed_outlier > 0, multiples of the mean score; "
                f"found {self.outlier} and {self.mixed_outlier}."
            )

    def measure(self, weights: Mapping[str, Tensor], stats: Mapping[str, InputStatistics]) -> Measured:
        # Scores are computed twice rather than kept: those of a whole block can be gigabytes.
        total = sum(weight.numel() for weight in weights.values())
        mean = sum(_scores(weight, stats[name]).sum(dtype=torch.float64).item() for name, weight in weights.items())
        mean /= max(total, 1)
        above, mixed_above = 0, 0
        for name, weight in weights.items():
            scores = _scores(weight, stats[name])
            above += int((scores > self.outlier * mean).sum())
            mixed_above += int((scores > self.mixed_outlier * mean).sum())
        return {"outliers": 100 * above / max(total, 1), "mixed_outliers": 100 * mixed_above / max(total, 1)}

    def sparsities(
        self, linears: Sequence[LinearSize], target: float, measured: Sequence[Measured], pattern: Pattern
    ) -> Mapping[str, float]:
        weights = block_weights(linears, range(len(measured)))
        if not weights:
            return by_block(linears, {}, target)
        key = "mixed_outliers" if pattern.mixed else "outliers"
        place = _normalised([measured[block][key] for block in weights])
        if pattern.mixed and pattern.keep is not None and pattern.group is not None:
            extra = np.round(self.mixed_spread * (place - place.mean()))
            found = np.clip(pattern.group - pattern.keep - extra, 1, pattern.group - 1) / pattern.group
        else:
            found = shifted(-2 * self.spread * place, list(weights.values()), target, *bounds(target))
        return by_block(linears, dict(zip(weights, found, strict=True)), target)


def _scores(weight: Tensor, stats: InputStatistics) -> Tensor:
    """Wanda's, with what is not finite counted as nothing, so that one broken input cannot swallow the block's mean."""
    return Wanda().score(weight, stats).nan_to_num_(0.0, 0.0, 0.0)


def _normalised(values: Sequence[float]) -> Floats:
    """From 0 for the least to 1 for the greatest; all 0 when there is no difference."""
    found = np.asarray(values, float)
    return (found - found.min()) / (np.ptp(found) or 1.0)
