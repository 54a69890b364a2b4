"""Labels of one axis against a baseline label of it, within all other settings, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Claim, Comparison, Estimate, counted, judge, overall, repeats
from secateur.studies.intervals import NOT_SUPPORTED, SUPPORTED, UNDECIDED, estimate
from secateur.studies.table import Table


@dataclass(frozen=True)
class Difference(Comparison):
    """Each candidate's metric less the baseline's, seed by seed (logarithms where the metric is a perplexity), in every
    combination of the other axes' labels.

    ``candidates``: empty for all other labels. ``claim``: what is claimed of the candidates; a difference that is clearly
    the other way is "not supported", one whose interval includes 0 undecided. A candidate's estimate over several
    settings is the mean over them within each seed, so that seeds, not settings, are the repeats. Verdicts on several
    candidates are adjusted for being several (Holm); the answer is "supported" when they all are.
    """

    axis: str = ""
    baseline: str = ""
    candidates: list[str] = field(default_factory=list)
    claim: Claim = "better"
    kind: ClassVar[str] = "difference"

    def check(self, axes: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float] | None]) -> None:
        self._known("an axis", self.axis, axes)
        for label in (self.baseline, *self.candidates):
            self._known(
                "a baseline, a label of the axis", label, axes[self.axis], f"label of axis {self.axis!r} called"
            )
        if self.baseline in self.candidates or len(axes[self.axis]) < 2:
            raise RecipeError(
                f"The comparison difference over {self.axis!r} needs a candidate that is not its baseline "
                f"{self.baseline!r}."
            )

    def asked(self) -> str:
        who = " and ".join(map(repr, self.candidates)) or "every other"
        verb = "Are" if len(self.candidates) > 1 else "Is"
        return f"{verb} {who} {self.claim} than {self.baseline!r} on {self.axis}?"

    def answer(self, table: Table) -> dict[str, Any]:
        sign = {"better": table.sign, "worse": -table.sign, "different": 0.0}[self.claim]
        groups, estimates, by_candidate = [], [], dict[str, list[dict[int, float]]]()
        for where in table.settings(self.axis):
            there = table.labels(self.axis, where)
            for label in [one for one in self.candidates or there if one in there and one != self.baseline]:
                if self.baseline not in there:
                    continue
                values = table.complete([where | {self.axis: label}, where | {self.axis: self.baseline}])
                differences = {seed: a - b for seed, (a, b) in values.items()}
                found = estimate(list(differences.values()))
                pairs = [
                    {"seed": seed, "a": table.unscaled(a), "b": table.unscaled(b), "difference": a - b}
                    for seed, (a, b) in values.items()
                ]
                groups.append({"where": where, "a": label, "b": self.baseline, **found.fields, "pairs": pairs})
                estimates.append(found)
                by_candidate.setdefault(label, []).append(differences)
        adjusted = judge(groups, estimates, sign)
        pooled = {label: overall(found) for label, found in by_candidate.items()}
        candidates = [{"where": {}, "a": label, "b": self.baseline, **found.fields} for label, found in pooled.items()]
        among = judge(candidates, list(pooled.values()), sign)
        said = []
        for one in candidates:
            interval = table.interval_said(one["low"], one["high"])
            found = pooled[one["a"]]
            said.append(f"{one['a']!r}: {table.said(found.mean)} ({interval}, {repeats(found)}): {one['verdict']}")
        alone = next(iter(pooled.values())) if len(pooled) == 1 else Estimate(0)  # the mean of several says nothing
        more = f" Candidates: {among}." if len(pooled) > 1 else ""
        return {
            "sentence": f"{table.metric} against {self.baseline!r}: {'; '.join(said) or 'no cells'}.{more}{counted(groups)}",
            "verdict": _united([one["verdict"] for one in candidates]),
            "estimate": alone.mean,
            "low": alone.low,
            "high": alone.high,
            "adjustment": adjusted,
            "candidates": candidates,
            "groups": groups,
        }


def _united(verdicts: Sequence[str]) -> str:
    """Supported if all are; not supported if any is clearly the other way."""
    if NOT_SUPPORTED in verdicts:
        return NOT_SUPPORTED
    return SUPPORTED if verdicts and set(verdicts) == {SUPPORTED} else UNDECIDED
