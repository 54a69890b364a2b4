"""ADMM weight update with a gradually grown mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.masks import Group, Pattern, check_group, keep_mask
from secateur.masks.selection import keep_highest, pruned_count
from secateur.methods.base import Method, Pruned
from secateur.methods.cost import Cost
from secateur.methods.quadratic import proximal_inverse, scale_of
from secateur.statistics import Gram, InputStatistics, Statistic


@dataclass(frozen=True)
class ADMM(Method):
    """ADMM updates the weights while the mask grows over a cubic schedule.

    In columns scaled to equal norm (W' = W R with R = ||X||, H = R^-1 (X^T X) R^-1 + ``damping`` I), from V = W', U = 0,
    at each of ``steps``: the mask drops the lowest |V + U|, at step t of ``ramp`` the share s (1 - (1 - t / ramp)^3) of
    the weights, from then on it stays; ``Z = mask (V + U)``, ``U = V + U - Z`` and
    ``V = W' + rho (H + rho I)^-1 (Z - U - W')``. The result is ``mask (V + U) R^-1``.
    Unstructured, the weights of the whole matrix compete (``group``), or those of a row. N:M: while the mask grows, only the
    lowest of those that the pattern drops go. Inputs that were zero at every token have their weights pruned first.
    W ``[out, in]`` fp32. Cost: in^3 + 2 * steps * out * in^2 FLOPs, 12 * in^2 + 20 * out * in bytes.
    Source: Boza 2024, arXiv 2401.02938, algorithm 2.
    """

    group: Group = "matrix"
    damping: float = 0.1
    rho: float = 1.0
    steps: int = 20
    ramp: int = 15

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    own_cost: ClassVar[Cost] = Cost(shared_flops=2, flops=40, moved=1000, held=25, shared_held=12, shared_kept=4)

    def __post_init__(self) -> None:
        check_group(self.group)
        if not 0 <= self.damping <= 1 or self.rho <= 0 or not 1 <= self.ramp <= self.steps:
            raise UsageError(
                "ADMM needs 0 <= damping <= 1, rho > 0 and 1 <= ramp <= steps; found "
                f"damping {self.damping}, rho {self.rho}, ramp {self.ramp} and steps {self.steps}."
            )

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        gram = stats[Gram]
        scale = scale_of(gram, 0.0)
        # (H + rho I)^-1 of a diagonal of ones with both added: the damping is here a share of each diagonal entry.
        inverse = gram.derive(
            ("proximal inverse", 0.0, self.damping + self.rho),
            lambda: proximal_inverse(gram, 0.0, self.damping + self.rho),
        )
        dense = (weight * scale.root).masked_fill_(scale.dead, 0)
        mask = torch.ones_like(dense, dtype=torch.bool)
        target, kept = dense.clone(), torch.empty_like(dense)
        for step in range(1, self.steps + 1):
            if step <= self.ramp:
                mask = self._mask(target.abs(), pattern, sparsity, 1 - (1 - step / self.ramp) ** 3)
            torch.mul(target, mask, out=kept)
            dual = target.sub_(kept)
            target = torch.addmm(dense, kept.sub_(dual).sub_(dense), inverse, alpha=self.rho).add_(dual)
        found = target.mul_(mask).div_(scale.root)
        return Pruned(mask, found, {"dead_inputs": float(scale.dead.sum())})

    def _mask(self, scores: Tensor, pattern: Pattern, sparsity: float, share: float) -> Tensor:
        """The mask that drops ``share`` of all that the pattern, or the sparsity, finally drops."""
        if not pattern.structured or share == 1:
            return keep_mask(scores, pattern, sparsity * share, self.group)
        final = keep_mask(scores, pattern, sparsity, self.group)
        drop = pruned_count(int((~final).sum()), share)
        return keep_highest(scores.masked_fill(final, torch.inf).reshape(1, -1), drop).reshape(scores.shape)
