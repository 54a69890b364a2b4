"""Whether a fact of the calibration sets goes with the metric, over the labels of an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.stats import norm, permutation_test, rankdata

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Claim, Comparison, counted, judge, that
from secateur.studies.intervals import LEVEL, RESAMPLES, Estimate
from secateur.studies.table import Table

FEWEST = 5
"""Of four labels the best ranking comes by chance once in twelve times."""


@dataclass(frozen=True)
class _Setting:
    """What is known in one setting: by label the fact and the metric (means over ``seeds``), and every set as a point."""

    fact: Mapping[str, float]
    metric: Mapping[str, float]
    seeds: int
    points: list[dict[str, Any]]


@dataclass(frozen=True)
class Correlation(Comparison):
    """Spearman's rank correlation of ``fact`` with the metric over the labels of ``axis``, both taken as means over seeds.

    The claim is about labels, so labels are what it is judged by, not seeds: the sources of a study are the same for every
    seed, and a few that happen to be in order are in order every time. ``p``: permutation test over the labels (the same
    permutation in every setting for the mean over settings); the interval: Fisher's z with the standard error of
    Bonett and Wright (2000), ``sqrt((1 + rho^2 / 2) / (labels - 3))``.

    ``fact``: a number of a calibration set: a measure of ``secateur profile`` by its key (such as ``jaccard``, which needs
    a ``reference`` text), or a count of its manifest (``tokens``, ``samples``). ``claim``: that sets with more of it prune
    better, worse, or either. Seeds that lack a label are left out.
    """

    axis: str = ""
    fact: str = ""
    reference: str | None = None
    claim: Claim = "better"
    kind: ClassVar[str] = "correlation"

    def check(self, axes: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float] | None]) -> None:
        self._known("an axis", self.axis, axes)
        if not self.fact:
            raise RecipeError("The comparison correlation needs a fact of the sets, such as jaccard or tokens.")
        if len(axes[self.axis]) < FEWEST:
            raise RecipeError(
                f"The comparison correlation needs at least {FEWEST} labels, for fewer may be in any order by chance; "
                f"{self.axis!r} has {len(axes[self.axis])}."
            )

    def asked(self) -> str:
        return f"Do sets with more {self.fact} prune {self.claim}, over {self.axis}?"

    def answer(self, table: Table) -> dict[str, Any]:
        sign = {"better": table.sign, "worse": -table.sign, "different": 0.0}[self.claim]
        groups, estimates, settings = [], [], []
        for where in table.settings(self.axis):
            setting = self._setting(table, where)
            found = _correlation([setting])
            groups.append({"where": where, **found.fields, "points": setting.points})
            estimates.append(found)
            settings.append(setting)
        adjusted = judge(groups, estimates, sign)
        whole = _correlation(settings)
        verdict = whole.verdict(sign, whole.p)
        return {
            "sentence": self._sentence(table, whole, max((one.seeds for one in settings), default=0), verdict)
            + counted(groups),
            "verdict": verdict,
            "estimate": whole.mean,
            "low": whole.low,
            "high": whole.high,
            "p": whole.p,
            "adjustment": adjusted,
            "unit": "Spearman's rho",
            "fact": self.fact,
            "groups": groups,
        }

    def _sentence(self, table: Table, whole: Estimate, seeds: int, verdict: str) -> str:
        if whole.mean is None:
            return (
                f"Fewer than {FEWEST} labels of {self.axis} have both {self.fact} and {table.metric}, or they do not differ: "
                "undecided."
            )
        interval = "no interval" if whole.low is None else f"95 % interval {whole.low:+.2f} to {whole.high:+.2f}"
        return (
            f"The rank correlation of {self.fact} with {table.metric} over {whole.n} labels of {self.axis} is {whole.mean:+.2f} "
            f"({interval}, p {whole.p:.3f} by permutation; each label the mean of {seeds} seeds): "
            f"{that(verdict, f'more of it is {self.claim}')}."
        )

    def _setting(self, table: Table, where: Mapping[str, str]) -> _Setting:
        facts, values = dict[str, dict[int, float]](), dict[str, dict[int, float]]()
        for label in table.labels(self.axis, where):
            here = {**where, self.axis: label}
            fact, series = table.facts(here, self.fact), table.series(here)
            both = sorted(fact.keys() & series.keys())
            if both:
                facts[label] = {seed: fact[seed] for seed in both}
                values[label] = {seed: series[seed] for seed in both}
        points = [
            {"seed": seed, "label": label, "fact": facts[label][seed], "value": table.unscaled(values[label][seed])}
            for label in facts
            for seed in facts[label]
        ]
        shared = set.intersection(*map(set, facts.values())) if facts else set()

        def means(found: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
            return {label: sum(one[seed] for seed in shared) / len(shared) for label, one in found.items() if shared}

        return _Setting(means(facts), means(values), len(shared), points)


def _correlation(settings: Sequence[_Setting]) -> Estimate:
    """The mean over settings of the rank correlation over the labels that all of them have."""
    known = [one for one in settings if one.fact]
    shared = set.intersection(*(set(one.fact) for one in known)) if known else set()
    labels = [label for label in (known[0].fact if known else ()) if label in shared]
    left_out = len(settings) - len(known)
    ranks = [(_ranks(one.fact, labels), _ranks(one.metric, labels)) for one in known]
    if len(labels) < FEWEST or any(not np.any(side) for pair in ranks for side in pair):
        return Estimate(len(labels), settings=len(known), left_out=left_out)
    xs, ys = (np.array(side) for side in zip(*ranks, strict=True))  # [settings, labels]

    def rho(order: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.einsum("s...n,sn->...", xs[:, order.astype(int)], ys) / len(xs)

    tested: Any = permutation_test(
        (np.arange(len(labels)),), rho, permutation_type="pairings", vectorized=True, n_resamples=RESAMPLES, rng=0
    )
    mean = float(tested.statistic)
    low, high = _interval(mean, len(labels))
    return Estimate(len(labels), mean, low, high, p=float(tested.pvalue), settings=len(known), left_out=left_out)


def _ranks(values: Mapping[str, float], labels: Sequence[str]) -> np.ndarray:
    """Centred ranks of length 1; zeros where all values are the same."""
    ranks = rankdata([values[label] for label in labels]) if labels else np.zeros(0)
    centred = ranks - ranks.mean() if labels else ranks
    length = float(np.linalg.norm(centred))
    return centred / length if length > 0 else centred


def _interval(rho: float, labels: int) -> tuple[float, float]:
    """Of level 0.95; a correlation of one has no width, which its p-value answers for."""
    bounded = max(-1 + 1e-12, min(1 - 1e-12, rho))
    half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt((1 + bounded**2 / 2) / (labels - 3))
    return math.tanh(math.atanh(bounded) - half), math.tanh(math.atanh(bounded) + half)
