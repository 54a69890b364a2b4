"""The metric along a numeric axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Claim, Comparison, counted, judge, overall, repeats, that
from secateur.studies.intervals import estimate
from secateur.studies.table import Table


@dataclass(frozen=True)
class Trend(Comparison):
    """The least-squares slope of the metric (its logarithm, if a perplexity) along the numbers of ``axis``, by seed.

    ``scale``: ``log2`` takes the slope per doubling of the number (which must be above 0), ``linear`` per unit.
    ``claim``: that the metric gets better along the axis, worse, or either.
    """

    axis: str = ""
    scale: Literal["linear", "log2"] = "linear"
    claim: Claim = "better"
    kind: ClassVar[str] = "trend"

    def check(self, axes: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float] | None]) -> None:
        self._known("an axis", self.axis, axes)
        found = numbers[self.axis]
        if found is None or len(set(found)) < 2:
            raise RecipeError(
                f"The comparison trend needs an axis whose labels are numbers, at least 2; those of {self.axis!r} are "
                f"{', '.join(axes[self.axis])}."
            )
        if self.scale == "log2" and min(found) <= 0:
            raise RecipeError(
                f"The comparison trend with scale log2 needs numbers above 0; {self.axis!r} has {min(found):g}."
            )

    def asked(self) -> str:
        return f"Does the metric get {self.claim} along {self.axis}?"

    def answer(self, table: Table) -> dict[str, Any]:
        sign = {"better": table.sign, "worse": -table.sign, "different": 0.0}[self.claim]
        numbers = dict(zip(table.axes[self.axis], table.numbers[self.axis] or [], strict=True))
        groups, estimates, slopes = [], [], []
        for where in table.settings(self.axis):
            labels = table.labels(self.axis, where)
            places = [math.log2(numbers[label]) if self.scale == "log2" else numbers[label] for label in labels]
            values = table.complete([where | {self.axis: label} for label in labels]) if len(set(places)) > 1 else {}
            by_seed = {seed: float(np.polyfit(places, found, 1)[0]) for seed, found in values.items()}
            found = estimate(list(by_seed.values()))
            pairs = [{"seed": seed, "difference": slope} for seed, slope in by_seed.items()]
            groups.append({"where": where, **found.fields, "pairs": pairs})
            estimates.append(found)
            slopes.append(by_seed)
        adjusted = judge(groups, estimates, sign)
        whole = overall(slopes)
        step = f"doubling of {self.axis}" if self.scale == "log2" else f"unit of {self.axis}"
        return {
            "sentence": (
                f"{table.metric} changes by {table.said(whole.mean)} per {step} "
                f"({table.interval_said(whole.low, whole.high)}, {repeats(whole)}): "
                f"{that(whole.verdict(sign), f'it gets {self.claim}')}.{counted(groups)}"
            ),
            "verdict": whole.verdict(sign),
            "estimate": whole.mean,
            "low": whole.low,
            "high": whole.high,
            "adjustment": adjusted,
            "unit": f"{table.unit} per {step}",
            "groups": groups,
        }
