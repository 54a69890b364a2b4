"""ALPS: the mask by ADMM, then the kept weights by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.masks import Group, Pattern, check_group, keep_mask
from secateur.methods.base import Method, Pruned
from secateur.methods.cost import Cost
from secateur.methods.quadratic import fit_kept, proximal_inverse, scale_of
from secateur.statistics import Gram, InputStatistics, Statistic

CHECK_EVERY = 3
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # rho grows by the factor of the first share that the change reaches


@dataclass(frozen=True)
class ALPS(Method):
    """ADMM with a growing penalty finds the mask; conjugate gradients then fit what is kept.

    In columns scaled to equal norm (W' = W R with R^2 the diagonal of A = X^T X + ``damping`` * its mean diagonal, and
    H = R^-1 A R^-1), from D = W', U = 0:
    ``V = W' + rho (H + rho I)^-1 (D - U - W')``, ``D = the largest of V + U``, ``U = V + U - D``.
    Every third step rho grows (by 1.3, 1.2 or 1.1: the more, the more the mask has changed, as a share of the kept
    weights), until the mask no longer changes, at most ``steps``. Then the kept weights minimise the output error by
    ``fit_steps`` conjugate gradients. Unstructured, the weights of the whole matrix compete (``group``), or those of a row.
    Inputs that were zero at every token have their weights pruned first.
    W ``[out, in]`` fp32. Cost: 2 * out * in^2 FLOPs a step and in^3 a change of rho, 40 to 100 steps as a rule;
    12 * in^2 + 24 * out * in bytes. Source: Meng et al. 2024, arXiv 2406.07831, algorithms 1 and 2.
    """

    group: Group = "matrix"
    damping: float = 0.01
    rho: float = 0.1
    steps: int = 300
    fit_steps: int = 10

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    own_cost: ClassVar[Cost] = Cost(shared_flops=2, flops=200, moved=5000, held=29, shared_held=16, shared_kept=4)

    def __post_init__(self) -> None:
        check_group(self.group)
        if not 0 <= self.damping <= 1 or self.rho <= 0 or self.steps < 1 or self.fit_steps < 0:
            raise UsageError(
                "ALPS needs 0 <= damping <= 1, rho > 0, steps >= 1 and fit_steps >= 0; found "
                f"damping {self.damping}, rho {self.rho}, steps {self.steps} and fit_steps {self.fit_steps}."
            )

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        gram = stats[Gram]
        scale = scale_of(gram, self.damping)
        dense = weight.masked_fill(scale.dead, 0)
        mask, kept, steps, rho = self._search(dense * scale.root, gram, pattern, sparsity)
        fit = fit_kept(gram, self.damping, dense, mask, kept.div_(scale.root), self.fit_steps, tolerance=1e-5)
        return Pruned(mask, fit.weight, {"steps": steps, "rho": rho, "dead_inputs": float(scale.dead.sum())})

    def _search(
        self, dense: Tensor, gram: Gram, pattern: Pattern, sparsity: float
    ) -> tuple[Tensor, Tensor, int, float]:
        """The mask, the scaled weights D at the end, the steps taken and the last rho."""
        rho = self.rho
        inverse = gram.derive(
            ("proximal inverse", self.damping, rho), lambda: proximal_inverse(gram, self.damping, rho)
        )
        mask = keep_mask(dense.abs(), pattern, sparsity, self.group)
        kept, dual, before, step = dense * mask, dense.masked_fill(mask, 0), mask, 0
        for step in range(1, self.steps + 1):
            target = torch.addmm(dense, kept.sub_(dual).sub_(dense), inverse, alpha=rho).add_(dual)
            mask = keep_mask(target.abs(), pattern, sparsity, self.group)
            torch.mul(target, mask, out=kept)
            dual = target.sub_(kept)
            if step % CHECK_EVERY:
                continue
            changed = float((mask != before).sum()) / max(float(mask.sum()), 1.0)
            if changed == 0:
                break
            before = mask
            factor = next(factor for share, factor in GROWTH if changed >= share)
            rho *= factor
            dual /= factor  # the unscaled dual, rho * U, stays as it was
            inverse = proximal_inverse(gram, self.damping, rho)
        return mask, kept, step, rho
