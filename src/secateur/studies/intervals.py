"""Estimates from repeats: mean, Student-t, bootstrap and jackknife intervals, p-values, and their adjustment for being
several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import integrate, stats

LEVEL = 0.95
RESAMPLES = 9999
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"


@dataclass(frozen=True)
class Estimate:
    """The mean of ``n`` repeats; ``low`` to ``high``: Student's t, ``bootstrap_low`` to ``bootstrap_high``: BCa bootstrap
    over repeats, both of level 0.95; ``p``: two-sided, of the mean being 0 (t). ``None``: not to be had of so few.

    ``settings``: of how many it is the mean; ``left_out``: so many more have no repeat at all, which leaves it undecided."""

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    p: float | None = None
    settings: int = 1
    left_out: int = 0

    @property
    def fields(self) -> dict[str, Any]:
        """As an answer has them."""
        return {
            "estimate": self.mean,
            "low": self.low,
            "high": self.high,
            "bootstrap_low": self.bootstrap_low,
            "bootstrap_high": self.bootstrap_high,
            "p": self.p,
            "n": self.n,
        }

    def verdict(self, sign: float, p: float | None = None) -> str:
        """Whether the mean has the claimed ``sign`` (+1, -1; 0: any but 0) for sure; ``p``: adjusted, if it counts too."""
        if self.left_out or self.mean is None or self.low is None or self.high is None or self.low <= 0 <= self.high:
            return UNDECIDED
        if p is not None and p > 1 - LEVEL:
            return UNDECIDED
        return SUPPORTED if sign == 0 or self.mean * sign > 0 else NOT_SUPPORTED


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over repeats. What is not finite is no value."""
    found = [value for value in values if math.isfinite(value)]
    plain = student(found)
    if plain.low is None or plain.low == plain.high:
        return replace(plain, bootstrap_low=plain.low, bootstrap_high=plain.high)
    low, high = _bootstrap(np.array(found))
    return replace(plain, bootstrap_low=low, bootstrap_high=high)


def student(values: Sequence[float]) -> Estimate:
    """The mean over repeats with Student's interval alone."""
    found = np.array(values, dtype=np.float64)
    if not len(found):
        return Estimate(0)
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(1, mean)
    error = float(found.std(ddof=1)) / len(found) ** 0.5
    if error <= 1e-12 * max(1e-300, float(np.abs(found).max())):  # repeats that are all the same
        return Estimate(len(found), mean, mean, mean, p=1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(found) - 1))
    return Estimate(len(found), mean, mean - half, mean + half, p=p)


def jackknife(statistic: Callable[[np.ndarray], float], repeats: np.ndarray) -> Estimate:
    """A statistic of all ``repeats`` (along the first axis), with Student's interval of its jackknife pseudo-values.

    Source: Tukey (1958). Needs 3 repeats, so that 2 are left when one is taken away.
    """
    count = len(repeats)
    if count < 3:
        return Estimate(count)
    whole = statistic(repeats)
    return student([count * whole - (count - 1) * statistic(np.delete(repeats, one, axis=0)) for one in range(count)])


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """BCa; of two repeats, or where BCa has no answer, the percentile interval."""
    for method in ("BCa", "percentile") if len(values) > 2 else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method=method, rng=0, batch=999
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    return float(values.min()), float(values.max())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over one family (1979); what has no p-value is no test and is not counted."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted


def adjustment(tests: int) -> str:
    return "one test, not adjusted" if tests == 1 else f"Holm over the family of {tests} tests"


@lru_cache
def expected_range(count: int) -> float:
    """Mean range of ``count`` independent standard normal values: the integral of 1 - F^n - (1 - F)^n."""
    if count < 2:
        return 0.0
    norm: Any = stats.norm
    return float(integrate.quad(lambda x: 1 - norm.cdf(x) ** count - norm.sf(x) ** count, -8, 8)[0])
