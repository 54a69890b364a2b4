"""Sparsities that make the measured output errors of the linears small together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from secateur.allocation.balance import Floats, bounds, shifted
from secateur.allocation.base import Allocation, LinearSize, Measured
from secateur.errors import NumericsError, UsageError
from secateur.masks.pattern import UNSTRUCTURED, Pattern
from secateur.methods.initial import Initial, initial_method, united
from secateur.statistics import Gram, InputStatistics, Statistic

BISECTIONS = 100
PULL = 1e-3  # towards the target, as a share of the median slope: it decides between curves that hardly differ


@dataclass(frozen=True)
class MeasuredError(Allocation):
    """Linears whose output suffers more from pruning are pruned less.

    ``E(s) = tr((W - P) G (W - P)^T) / tr(W G W^T)`` is what pruning W ``[out, in]`` alone to sparsity s by ``method``,
    to P, does to its output, with the Gram matrix G of the dense model's inputs. It is measured unstructured at every
    multiple of ``step`` on ``rows`` evenly spaced rows (0: all), known at 0 and 1, and made convex. The sparsities
    minimise the sum of E over all linears for the exact mean weighted by weights: at the optimum all slopes
    ``E'(s) / weights`` are equal, found by bisection over that number. A linear lies within ``spread`` of the target:
    the sum of errors taken one linear at a time ignores how they add up on the way through the model, and trusted
    without bound it would prune some linears to nearly nothing. ``level`` "block" gives all linears of a block the same;
    not the default, because these errors compare the linears of a block better than the blocks: they do not know what
    an error in a block does to the blocks after it.
    Linears outside the blocks, such as the head, get the target.
    Cost per linear: (1/step - 1) * (2 * rows * in^2 FLOPs + ``method`` on those rows), 4 * in^2 + 16 * rows * in bytes.
    Source: none; the separable error model is that of layer-wise pruning (Frantar and Alistarh 2022, arXiv 2208.11580).
    """

    method: Initial = "wanda"
    level: Literal["linear", "block"] = "linear"
    spread: float = 0.1
    step: float = 0.05
    rows: int = 512

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        initial_method(self.method)
        if self.level not in ("linear", "block"):
            raise UsageError(f"The allocation 'error' has the levels 'linear' and 'block'; found {self.level!r}.")
        if not 0 <= self.spread <= 1 or not 0.01 <= self.step <= 0.25 or self.rows < 0:
            raise UsageError(
                "The allocation 'error' needs 0 <= spread <= 1, 0.01 <= step <= 0.25 and rows >= 0; "
                f"found spread {self.spread}, step {self.step} and rows {self.rows}."
            )

    def statistics(self) -> tuple[type[Statistic], ...]:
        return united(self.needs, initial_method(self.method).statistics())

    def measure(self, weights: Mapping[str, Tensor], stats: Mapping[str, InputStatistics]) -> Measured:
        return {name: self._errors(name, weight, stats[name]) for name, weight in weights.items()}

    def _errors(self, name: str, weight: Tensor, stats: InputStatistics) -> list[float]:
        """E at the multiples of ``step`` strictly between 0 and 1."""
        if 0 < self.rows < weight.shape[0]:
            weight = weight[torch.arange(self.rows, device=weight.device) * weight.shape[0] // self.rows]
        gram, method = stats[Gram], initial_method(self.method).for_linear(name)
        whole, parts = gram.energy(weight), round(1 / self.step)
        pruned = (method.prune(weight, stats, UNSTRUCTURED, part / parts).weight for part in range(1, parts))
        lost = [gram.energy(each - weight) for each in pruned]
        if not all(map(math.isfinite, [whole, *lost])):
            raise NumericsError(
                f"The outputs of {name} are not finite over the calibration data, dense or pruned. Compute in a wider "
                "type, check the model's weights, or let the allocation 'error' measure by another method."
            )
        return [max(each, 0.0) / whole if whole > 0 else 0.0 for each in lost]

    def sparsities(
        self, linears: Sequence[LinearSize], target: float, measured: Sequence[Measured], pattern: Pattern
    ) -> Mapping[str, float]:
        known = {name: errors for found in measured for name, errors in found.items()}
        groups: dict[str | int, list[LinearSize]] = {}
        for linear in linears:
            if linear.name in known:
                groups.setdefault(linear.block if self.level == "block" else linear.name, []).append(linear)
        found = {linear.name: target for linear in linears}
        if groups:
            weights = np.array([sum(linear.weights for linear in group) for group in groups.values()], float)
            curves = [np.sum([known[linear.name] for linear in group], axis=0) for group in groups.values()]
            tops = [len(group) for group in groups.values()]
            chosen = least_sum(curves, tops, weights, target, *bounds(target, self.spread))
            for group, sparsity in zip(groups.values(), chosen, strict=True):
                found |= {linear.name: float(sparsity) for linear in group}
        return found


def least_sum(
    curves: Sequence[Floats], tops: Sequence[float], weights: Floats, target: float, low: float, high: float
) -> Floats:
    """Sparsities in [low, high] of weighted mean ``target`` that minimise the sum of ``curves``.

    A curve holds its values at equal steps strictly between 0, where it is 0, and 1, where it is its top.
    """
    pieces = [_slopes(np.concatenate([[0.0], curve, [top]])) for curve, top in zip(curves, tops, strict=True)]
    marginal = [slopes / weight for (_, slopes), weight in zip(pieces, weights, strict=True)]
    pull = PULL * (float(np.median(np.abs(np.concatenate(marginal)))) or 1.0)
    marginal = [slopes + pull * (at - target) for (at, _), slopes in zip(pieces, marginal, strict=True)]

    def at_price(price: float) -> Floats:
        found = [np.interp(price, slopes, at) for (at, _), slopes in zip(pieces, marginal, strict=True)]
        return np.clip(np.array(found), low, high)

    below, above = min(slopes[0] for slopes in marginal), max(slopes[-1] for slopes in marginal)
    for _ in range(BISECTIONS):
        price = (below + above) / 2
        if at_price(price) @ weights < target * weights.sum():
            below = price
        else:
            above = price
    return shifted(at_price(above), weights, target, low, high)


def _slopes(curve: Floats) -> tuple[Floats, Floats]:
    """Places in [0, 1], and the slopes there of the lower convex hull of ``curve`` (equal steps from 0 to 1).

    The slope of each straight piece counts in its middle and runs linearly in between, so that it has no jumps: a
    piece would otherwise be taken whole or not at all.
    """
    x, hull = np.linspace(0, 1, len(curve)), [0]
    for point in range(1, len(curve)):
        while len(hull) > 1 and _rise(x, curve, hull[-2], hull[-1]) >= _rise(x, curve, hull[-1], point):
            hull.pop()
        hull.append(point)
    middles = (x[hull][1:] + x[hull][:-1]) / 2
    slopes = np.diff(curve[hull]) / np.diff(x[hull])
    if len(slopes) == 1:
        return np.array([0.0, 1.0]), np.repeat(slopes, 2)
    bends = np.diff(slopes) / np.diff(middles)
    first, last = slopes[0] - bends[0] * middles[0], slopes[-1] + bends[-1] * (1 - middles[-1])
    return np.concatenate([[0.0], middles, [1.0]]), np.concatenate([[first], slopes, [last]])


def _rise(x: Floats, y: Floats, start: int, stop: int) -> float:
    return (y[stop] - y[start]) / (x[stop] - x[start])
