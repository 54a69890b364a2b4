"""RIA: relative importance and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.errors import UsageError
from secateur.methods.base import ScoreMethod
from secateur.methods.cost import Cost
from secateur.statistics import ColumnNorms, InputStatistics, Statistic


@dataclass(frozen=True)
class RIA(ScoreMethod):
    """Wanda's idea with weights relative to the sums of their row and column.

    Score ``(|W_ij| / sum_j |W_ij| + |W_ij| / sum_i |W_ij|) * ||X_j||_2^power``, compared within each output row of W
    ``[out, in]`` fp32 (N:M: within each group). The weights that stay do not change.
    Cost: three passes over W. Source: Zhang et al. 2024, "Plug-and-Play: an efficient post-training pruning method for
    large language models" (ICLR), equations 2 and 4, without its channel permutation.
    """

    power: float = 0.5

    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorms,)
    own_cost: ClassVar[Cost] = Cost(moved=80, held=16)

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 4:
            raise UsageError(f"RIA needs 0 <= power <= 4; found power {self.power}.")

    def score(self, weight: Tensor, stats: InputStatistics) -> Tensor:
        size = weight.abs()
        # A row or column of zeros has nothing to divide: its scores are 0 whatever the divisor.
        tiny = 1e-30
        rows, columns = size.sum(dim=1, keepdim=True).clamp_min(tiny), size.sum(dim=0).clamp_min(tiny)
        return size * (1 / rows + 1 / columns) * stats[ColumnNorms].norms() ** self.power
