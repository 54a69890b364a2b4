"""Reconstruction: the best kept weights for another method's mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.errors import UsageError
from secateur.masks import Pattern
from secateur.methods.base import Method, Pruned
from secateur.methods.cost import Cost
from secateur.methods.initial import Initial, initial_method, united
from secateur.methods.quadratic import fit_kept
from secateur.statistics import Gram, InputStatistics, Statistic


@dataclass(frozen=True)
class Reconstruct(Method):
    """Another method's mask, its kept weights refitted by least squares.

    For the mask of ``initial``, each row of W_hat ``[out, in]`` minimises
    ``(w_hat - w) A (w_hat - w)^T``, A = X^T X + ``damping`` * its mean diagonal, over its kept weights: conjugate gradients
    on all rows at once, preconditioned by A's diagonal, from ``initial``'s weights, at most ``iterations`` and until the
    residual of every row is below ``tolerance`` (relative). The damping draws the weights to their dense values.
    Cost: 2 * out * in^2 FLOPs an iteration, 24 * out * in bytes, no copy of the Gram. Source: the normal equations.
    """

    initial: Initial = "wanda"
    damping: float = 0.01
    iterations: int = 50
    tolerance: float = 3e-3

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    own_cost: ClassVar[Cost] = Cost(flops=40, moved=400, held=28)

    def __post_init__(self) -> None:
        initial_method(self.initial)
        if not 0 <= self.damping <= 1 or self.iterations < 1 or not 0 <= self.tolerance < 1:
            raise UsageError(
                "Reconstruction needs 0 <= damping <= 1, iterations >= 1 and 0 <= tolerance < 1; found "
                f"damping {self.damping}, iterations {self.iterations} and tolerance {self.tolerance}."
            )

    def statistics(self) -> tuple[type[Statistic], ...]:
        return united(self.needs, initial_method(self.initial).statistics())

    def cost(self) -> Cost:
        return self.own_cost + initial_method(self.initial).cost()

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        start = initial_method(self.initial).prune(weight, stats, pattern, sparsity)
        fit = fit_kept(stats[Gram], self.damping, weight, start.mask, start.weight, self.iterations, self.tolerance)
        return Pruned(
            start.mask, fit.weight, start.notes | {"fit_iterations": fit.iterations, "fit_residual": fit.residual}
        )
