"""Bringing sparsities to an exact weighted mean within bounds: the last step of every uneven allocation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateur.allocation.base import LinearSize

CEILING = 0.99
"""The most an uneven allocation prunes of a linear (unless the target itself is more): OWL's least density of 0.01."""

Floats = NDArray[np.float64]


def bounds(target: float, spread: float = 1.0) -> tuple[float, float]:
    """The least and the greatest sparsity within ``spread`` of ``target``; ``target`` itself is always allowed."""
    return max(0.0, target - spread), max(min(CEILING, target + spread), target)


def shifted(values: ArrayLike, weights: ArrayLike, mean: float, low: float, high: float) -> Floats:
    """``clip(values + t, low, high)`` for the one t that gives it the weighted ``mean``, which lies in [low, high]."""
    return _through(np.asarray(values, float), np.ones(np.shape(values)), weights, mean, low, high)


def scaled(values: ArrayLike, weights: ArrayLike, mean: float, low: float, high: float) -> Floats:
    """``clip(values * t, low, high)``, as ``shifted``; ``values`` are positive."""
    return _through(np.zeros(np.shape(values)), np.asarray(values, float), weights, mean, low, high)


def _through(start: Floats, slope: Floats, weights: ArrayLike, mean: float, low: float, high: float) -> Floats:
    """``clip(start + t * slope, low, high)`` with the weighted ``mean``: piecewise linear in t, hence solved exactly."""
    shares = np.asarray(weights, float) / np.sum(weights)
    knots = np.sort(np.concatenate([(low - start) / slope, (high - start) / slope]))
    means = np.clip(start + knots[:, None] * slope, low, high) @ shares
    t = np.interp(mean, np.maximum.accumulate(means), knots)
    return np.clip(start + t * slope, low, high)


def block_weights(linears: Sequence[LinearSize], blocks: Collection[int]) -> dict[int, int]:
    """Weights to prune in each of ``blocks`` that has any, in order."""
    totals: dict[int, int] = {}
    for linear in sorted(linears, key=lambda linear: linear.block):
        if linear.block in blocks:
            totals[linear.block] = totals.get(linear.block, 0) + linear.weights
    return totals


def by_block(linears: Sequence[LinearSize], sparsities: Mapping[int, float], target: float) -> dict[str, float]:
    """The sparsity of its block for every linear; ``target`` for those of no block with one, such as the head."""
    return {linear.name: float(sparsities.get(linear.block, target)) for linear in linears}
