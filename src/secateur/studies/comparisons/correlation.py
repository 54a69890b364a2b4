"""Whether a fact of the calibration sets goes with the metric, over the labels of an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from scipy.stats import spearmanr

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Claim, Comparison, counted, judge, overall, repeats
from secateur.studies.intervals import estimate
from secateur.studies.table import Table

FEWEST = 3


@dataclass(frozen=True)
class Correlation(Comparison):
    """Spearman's rank correlation of ``fact`` with the metric over the labels of ``axis``, by seed; its mean over seeds and
    the interval of that mean.

    ``fact``: a number of a calibration set: a measure of ``secateur profile`` by its key (such as ``jaccard``, which needs
    a ``reference`` text), or a count of its manifest (``tokens``, ``samples``). ``claim``: that sets with more of it prune
    better, worse, or either. Seeds with fewer than 3 labels, or the same value for all, say nothing and are left out.
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
                f"The comparison correlation needs at least {FEWEST} labels to rank; {self.axis!r} has "
                f"{len(axes[self.axis])}."
            )

    def asked(self) -> str:
        return f"Do sets with more {self.fact} prune {self.claim}, over {self.axis}?"

    def answer(self, table: Table) -> dict[str, Any]:
        sign = {"better": table.sign, "worse": -table.sign, "different": 0.0}[self.claim]
        groups, estimates, rhos = [], [], []
        for where in table.settings(self.axis):
            by_seed, points = self._by_seed(table, where)
            found = estimate(list(by_seed.values()))
            pairs = [{"seed": seed, "difference": rho} for seed, rho in by_seed.items()]
            groups.append({"where": where, **found.fields, "pairs": pairs, "points": points})
            estimates.append(found)
            rhos.append(by_seed)
        adjusted = judge(groups, estimates, sign)
        whole = overall(rhos)
        if whole.mean is None:
            said = f"No seed has {self.fact} and {table.metric} for {FEWEST} sets or more that differ: undecided."
        else:
            interval = "no interval" if whole.low is None else f"95 % interval {whole.low:+.2f} to {whole.high:+.2f}"
            said = (
                f"The rank correlation of {self.fact} with {table.metric} over {self.axis} is {whole.mean:+.2f} ({interval}, "
                f"{repeats(whole)}): {whole.verdict(sign)} that more of it is {self.claim}.{counted(groups)}"
            )
        return {
            "sentence": said,
            "verdict": whole.verdict(sign),
            "estimate": whole.mean,
            "low": whole.low,
            "high": whole.high,
            "adjustment": adjusted,
            "unit": "Spearman's rho",
            "fact": self.fact,
            "groups": groups,
        }

    def _by_seed(self, table: Table, where: Mapping[str, str]) -> tuple[dict[int, float], list[dict[str, Any]]]:
        facts, values = dict[int, dict[str, float]](), dict[int, dict[str, float]]()
        for label in table.labels(self.axis, where):
            here = {**where, self.axis: label}
            for seed, value in table.series(here).items():
                values.setdefault(seed, {})[label] = value
            for seed, value in table.facts(here, self.fact).items():
                facts.setdefault(seed, {})[label] = value
        found, points = dict[int, float](), []
        for seed in sorted(values):
            there = [label for label in values[seed] if label in facts.get(seed, {})]
            xs, ys = [facts[seed][label] for label in there], [values[seed][label] for label in there]
            points += [
                {"seed": seed, "label": label, "fact": x, "value": table.unscaled(y)}
                for label, x, y in zip(there, xs, ys, strict=True)
            ]
            if len(there) >= FEWEST and len(set(xs)) > 1 and len(set(ys)) > 1:
                rho: Any = spearmanr(xs, ys)
                found[seed] = float(rho.statistic)
        return found, points
