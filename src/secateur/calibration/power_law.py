"""A power law of the loss in the amounts of several sources: its fit to trials, and the amounts that make it least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar, nnls

EXPONENTS = (0.05, 2.0)
GRID = 40
DRAWS = 400


@dataclass(frozen=True)
class PowerLaw:
    """``loss = level + d_seed + sum_i beta_i (n_i + 1)^(-gamma)``, the ``d_seed`` with mean 0.

    After AutoScale (Kang et al., COLM 2025, arXiv 2407.20177), which also makes each source's amount larger and smaller by
    a factor, the others unchanged, and fits power laws. There every domain has an exponent of its own; that all share
    ``gamma`` is our simplification: two changed amounts for each source, with the noise of few calibration samples, do not
    tell as many exponents apart. The 1 keeps the loss finite where a source gives nothing.

    ``beta``: ``[sources]``, none negative. ``residual``: standard deviation of the losses around the law, ``nan`` where
    ``freedom`` (losses less unknowns) is below 1. ``covariance``: of ``beta`` and ``gamma``, ``[sources + 1] * 2``.
    """

    gamma: float
    beta: np.ndarray
    level: float
    residual: float
    freedom: int
    covariance: np.ndarray

    def loss(self, amounts: Any) -> float:
        """The predicted loss, averaged over the seeds of the trials."""
        return float(self.level + self.beta @ _powers(amounts, self.gamma))

    def gain(self, before: Any, after: Any) -> tuple[float, float]:
        """How much lower the loss is at ``after`` than at ``before``, and the standard error of that.

        The error is the residual's, carried to first order (delta method). Where ``after`` is the best by this very law, its
        own dependence on the fit adds nothing to first order, since the law is flat there.
        """
        was, becomes = _powers(before, self.gamma), _powers(after, self.gamma)
        slope = (becomes * np.log1p(after) - was * np.log1p(before)) @ self.beta
        gradient = np.append(was - becomes, slope)
        return float(self.beta @ (was - becomes)), float(np.sqrt(max(gradient @ self.covariance @ gradient, 0.0)))


def fit(amounts: Any, losses: Any, seeds: Sequence[Any]) -> PowerLaw:
    """Least squares over all trials: ``amounts`` ``[trials, sources]``, ``losses`` and ``seeds`` ``[trials]``.

    For a fixed ``gamma`` the law is linear: subtracting each seed's mean removes ``level`` and ``d_seed``, and the ``beta``
    are a non-negative least squares problem. ``gamma`` is searched on a grid over ``EXPONENTS``, then between the best
    point's neighbours. Cost: some 60 such problems of ``trials x sources``.
    """
    counts, measured = np.asarray(amounts, dtype=float), np.asarray(losses, dtype=float)
    _, groups = np.unique(np.asarray(seeds), return_inverse=True)

    def at(gamma: float) -> tuple[np.ndarray, float]:
        beta, distance = nnls(_centred(_powers(counts, gamma), groups), _centred(measured, groups))
        return beta, float(distance)

    grid = np.geomspace(*EXPONENTS, GRID)
    best = int(np.argmin([at(gamma)[1] for gamma in grid]))
    between = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
    refined: Any = minimize_scalar(lambda gamma: at(gamma)[1], bounds=between, method="bounded")
    gamma = float(refined.x) if refined.fun < at(grid[best])[1] else float(grid[best])
    beta, distance = at(gamma)
    freedom = len(measured) - (groups.max() + 1) - counts.shape[1] - 1
    variance = distance**2 / freedom if freedom > 0 else float("nan")
    rest = measured - _powers(counts, gamma) @ beta
    level = float(np.mean([rest[groups == group].mean() for group in range(groups.max() + 1)]))
    covariance = variance * _inverse_information(counts, gamma, beta, groups)
    return PowerLaw(gamma, beta, level, float(np.sqrt(variance)), int(freedom), covariance)


def best_amounts(beta: Any, gamma: float, total: float) -> np.ndarray:
    """The ``n`` that minimise ``sum_i beta_i (n_i + 1)^(-gamma)`` with ``sum_i n_i = total`` and no ``n_i`` negative.

    At the minimum ``n_i + 1`` is in proportion to ``beta_i^(1 / (gamma + 1))`` over the sources that get anything; those
    whose proportional part would be below 1 get nothing, which lowers the others' parts, so this is repeated (water
    filling). Where no ``beta`` is positive, nothing distinguishes the sources, and all get the same.
    """
    strength = np.asarray(beta, dtype=float)
    if not (strength > 0).any():
        return np.full(len(strength), total / len(strength))
    part = (strength / strength.max()) ** (1 / (gamma + 1))
    given = part > 0
    while True:
        found = np.where(given, (total + given.sum()) * part / part[given].sum() - 1, 0.0)
        if (found >= 0).all():
            return found
        given &= found > 0


def bootstrap_shares(
    amounts: Any, losses: Any, seeds: Sequence[Any], total: float, draws: int = DRAWS
) -> np.ndarray | None:
    """The 2.5 and 97.5 % points of the best shares, ``[2, sources]``, over seeds drawn with replacement.

    ``None`` for a single seed. With few seeds there are few different draws (10 for 3 seeds), so the interval is rough.
    """
    counts, measured, names = np.asarray(amounts, dtype=float), np.asarray(losses, dtype=float), np.asarray(seeds)
    known = np.unique(names)
    if len(known) < 2:
        return None
    generator = np.random.default_rng(0)
    solved: dict[tuple[int, ...], np.ndarray] = {}
    shares = []
    for _ in range(draws):
        chosen = tuple(sorted(generator.integers(len(known), size=len(known)).tolist()))
        if chosen not in solved:
            rows = [np.flatnonzero(names == known[index]) for index in chosen]
            groups = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
            taken = np.concatenate(rows)
            law = fit(counts[taken], measured[taken], groups.tolist())
            solved[chosen] = best_amounts(law.beta, law.gamma, total) / total
        shares.append(solved[chosen])
    return np.percentile(np.array(shares), [2.5, 97.5], axis=0)


def _powers(amounts: Any, gamma: float) -> np.ndarray:
    return (np.asarray(amounts, dtype=float) + 1) ** -gamma


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``values`` less the mean of their group, along the first axis."""
    means = np.stack([values[groups == group].mean(axis=0) for group in range(groups.max() + 1)])
    return values - means[groups]


def _inverse_information(counts: np.ndarray, gamma: float, beta: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The covariance of ``beta`` and ``gamma`` for residuals of variance 1; 0 for what the losses do not depend on."""
    powers = _powers(counts, gamma)
    slope = -(powers * np.log1p(counts)) @ beta
    jacobian = _centred(np.column_stack([powers, slope]), groups)
    scale = np.linalg.norm(jacobian, axis=0)
    scale[scale == 0] = 1.0
    return np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), hermitian=True) / np.outer(scale, scale)
