"""Magnitude pruning, the control that needs no data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.masks import Group, Pattern
from secateur.masks.selection import pruned_count
from secateur.methods.base import Pruned, ScoreMethod
from secateur.statistics import InputStatistics


@dataclass(frozen=True)
class Magnitude(ScoreMethod):
    """Smallest weights go; needs no data (the control).

    Score ``|W_ij|``, compared within the whole matrix ``[out, in]`` (N:M: within each group).
    ``inclusive_threshold`` prunes the one weight more that the Wanda programs' ``<=`` does: for parity only.
    Source: Han et al. 2015, arXiv 1506.02626; compared per matrix as in the Wanda programs.
    """

    inclusive_threshold: bool = False
    group: Group = "matrix"

    def score(self, weight: Tensor, stats: InputStatistics) -> Tensor:
        return weight.abs()

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        if self.inclusive_threshold and not pattern.structured:
            sparsity = (pruned_count(weight.numel(), sparsity) + 1) / weight.numel()
        return super().prune(weight, stats, pattern, sparsity)
