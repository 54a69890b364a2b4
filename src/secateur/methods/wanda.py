"""Wanda: pruning by weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.masks import Group
from secateur.methods.base import ScoreMethod
from secateur.statistics import ColumnNorms, InputStatistics, Statistic


@dataclass(frozen=True)
class Wanda(ScoreMethod):
    """Smallest |weight| x input norm of each output row go.

    Score ``|W_ij| * ||X_j||_2`` with ``X_j`` ``[tokens]`` the j-th input channel over the calibration tokens,
    compared within each output row of W ``[out, in]`` (N:M: within each group). The weights that stay do not change.
    ``group`` "matrix" compares within the whole matrix instead, which the paper found worse on LLaMA.
    Cost: one pass over W. Source: Sun et al. 2023, arXiv 2306.11695, equation 1.
    """

    group: Group = "row"

    by_row: ClassVar[bool] = True
    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorms,)

    def score(self, weight: Tensor, stats: InputStatistics) -> Tensor:
        return weight.abs() * stats[ColumnNorms].norms()
