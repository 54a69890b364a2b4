"""Wanda's variant: rows give up an equal share of their scores instead of an equal number of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.masks import Pattern
from secateur.masks.selection import keep_highest, pruned_count
from secateur.methods.base import Method, Pruned
from secateur.methods.cost import Cost
from secateur.methods.wanda import Wanda
from secateur.statistics import ColumnNorms, InputStatistics, Statistic


@dataclass(frozen=True)
class WandaVariant(Method):
    """Wanda scores; every row loses the same share of their sum.

    With ``S_ij = |W_ij| * ||X_j||_2`` ``[out, in]`` fp32 and ``S_i(1) <= S_i(2) <= ...`` a row sorted, weight (k) of row i
    goes if ``sum_{l <= k} S_i(l) <= alpha * sum_l S_i(l)``, with one alpha for the matrix. Rows therefore get different
    sparsities; their total is exactly ``pruned_count`` of the whole matrix. The original bisects alpha until the
    sparsity is within 0.001; here alpha is the order statistic of all shares, and equal shares go in the order of rows.
    N:M patterns fix every row's sparsity: with them this is Wanda. The weights that stay do not change.
    Cost: sorting the rows, about 24 * out * in bytes. Source: Sun et al. 2023, arXiv 2306.11695, section 5 and appendix
    (``--use_variant`` of the program).
    """

    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorms,)
    own_cost: ClassVar[Cost] = Cost(moved=200, held=28)

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        if pattern.structured:
            return Wanda().prune(weight, stats, pattern, sparsity)
        scores, order = Wanda().score(weight, stats).sort(dim=1, stable=True)
        shares = scores.cumsum(dim=1, dtype=torch.float64)
        # A row of zeros has no shares to speak of: it goes first.
        shares /= shares[:, -1:].clone().clamp_(min=torch.finfo(torch.float64).tiny)
        # Shares rise along a row, and of equal ones the first go: what goes of a row is always its lowest scores.
        kept = keep_highest(shares.reshape(1, -1), pruned_count(weight.numel(), sparsity)).reshape(weight.shape)
        mask = torch.empty_like(kept).scatter_(1, order, kept)
        return Pruned(mask, weight.masked_fill(~mask, 0))
