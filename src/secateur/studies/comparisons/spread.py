"""How far apart the labels of one axis are, and whether that grows along another axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Comparison, counted, judge, overall, repeats
from secateur.studies.intervals import estimate, expected_range
from secateur.studies.table import Table


@dataclass(frozen=True)
class Spread(Comparison):
    """The range (highest less lowest) of the metric over the labels of ``axis``, for each label of ``along``, by seed;
    and its slope along that axis: per unit where the labels are numbers, else per step in the declared order.

    The claim is that it grows. Seeds alone make labels differ, so each level also has ``noise``, the range that labels
    without any difference would show: the expected range of so many normal values of the residual standard deviation
    (label and seed means removed). Noise that grows would look like a range that grows, so the slope of what is left after
    subtracting it in quadrature must not be negative either.
    """

    axis: str = ""
    along: str = ""
    kind: ClassVar[str] = "spread"

    def check(self, axes: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float] | None]) -> None:
        self._known("an axis, whose labels' range is taken", self.axis, axes)
        self._known("along, the axis it may grow along", self.along, axes)
        if self.axis == self.along or min(len(axes[self.axis]), len(axes[self.along])) < 2:
            raise RecipeError(
                f"The comparison spread needs two axes of at least 2 labels; found {self.axis!r} and {self.along!r}."
            )

    def asked(self) -> str:
        return f"Does the range over {self.axis} grow along {self.along}?"

    def answer(self, table: Table) -> dict[str, Any]:
        groups, estimates, slopes = [], [], []
        for where in table.settings(self.axis, self.along):
            levels, ranges = [], dict[str, dict[int, float]]()
            for level in table.labels(self.along, where):
                here = where | {self.along: level}
                labels = table.labels(self.axis, here)
                values = table.complete([here | {self.axis: label} for label in labels])
                ranges[level] = {seed: max(found) - min(found) for seed, found in values.items()}
                found = estimate(list(ranges[level].values()))
                levels.append({"label": level, "labels": len(labels), **found.fields, "noise": noise(values)})
            by_seed = _slopes(ranges, self._places(table, list(ranges)))
            found = estimate(list(by_seed.values()))
            pairs = [{"seed": seed, "difference": slope} for seed, slope in by_seed.items()]
            groups.append({"where": where, **found.fields, "levels": levels, "pairs": pairs})
            estimates.append(found)
            slopes.append(by_seed)
        adjusted = judge(groups, estimates, 1.0)
        whole = overall(slopes)
        return {
            "sentence": self._sentence(table, groups, whole) + counted(groups),
            "verdict": self._verdict(table, groups, whole),
            "estimate": whole.mean,
            "low": whole.low,
            "high": whole.high,
            "adjustment": adjusted,
            "unit": f"{table.unit} per {'unit' if table.numbers.get(self.along) else 'step'} of {self.along}",
            "groups": groups,
        }

    def _places(self, table: Table, levels: Sequence[str]) -> list[float]:
        numbers, labels = table.numbers.get(self.along), list(table.axes[self.along])
        return [float(numbers[labels.index(level)] if numbers else labels.index(level)) for level in levels]

    def _verdict(self, table: Table, groups: Sequence[Mapping[str, Any]], whole: Any) -> str:
        """That of the slope, unless the range beyond noise does not grow though the range does."""
        verdict = whole.verdict(1.0)
        beyond = [slope for group in groups if (slope := self._beyond_noise(table, group["levels"])) is not None]
        return "undecided" if verdict == "supported" and beyond and sum(beyond) <= 0 else verdict

    def _beyond_noise(self, table: Table, levels: Sequence[Mapping[str, Any]]) -> float | None:
        known = [one for one in levels if one["estimate"] is not None and one["noise"] is not None]
        if len(known) < 2:
            return None
        left = [max(0.0, one["estimate"] ** 2 - one["noise"] ** 2) ** 0.5 for one in known]
        return float(np.polyfit(self._places(table, [one["label"] for one in known]), left, 1)[0])

    def _sentence(self, table: Table, groups: Sequence[Mapping[str, Any]], whole: Any) -> str:
        def shown(value: float | None) -> str:
            return table.said(value).lstrip("+")

        means = []
        for level in table.axes[self.along]:
            found = [one for group in groups for one in group["levels"] if one["label"] == level]
            values = [one["estimate"] for one in found if one["estimate"] is not None]
            noises = [one["noise"] for one in found if one["noise"] is not None]
            if values:
                alone = f" (noise alone {shown(sum(noises) / len(noises))})" if noises else ""
                means.append(f"{level}: {shown(sum(values) / len(values))}{alone}")
        if whole.mean is None:
            return (
                f"The range of {table.metric} over {self.axis} cannot be followed along {self.along}: no complete seed."
            )
        interval = "no interval" if whole.low is None else f"95 % interval {whole.low:+.3g} to {whole.high:+.3g}"
        per = "unit" if table.numbers.get(self.along) else "step"
        return (
            f"The range of {table.metric} over {self.axis} is {', '.join(means)}; it changes by {whole.mean:+.3g} {table.unit} "
            f"per {per} of {self.along} ({interval}, {repeats(whole)}): {self._verdict(table, groups, whole)} that it grows."
        )


def _slopes(ranges: Mapping[str, Mapping[int, float]], places: Sequence[float]) -> dict[int, float]:
    """By seed, the least-squares slope of the range over the levels; seeds that lack a level are left out."""
    there = list(ranges.values())
    if len(there) < 2:
        return {}
    shared = set.intersection(*map(set, there))
    return {seed: float(np.polyfit(places, [one[seed] for one in there], 1)[0]) for seed in sorted(shared)}


def noise(values: Mapping[int, Sequence[float]]) -> float | None:
    """The range expected of labels that do not differ; ``values``: by seed, one a label."""
    table = np.array(list(values.values()))
    if table.ndim != 2 or min(table.shape) < 2:
        return None
    left = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    spread = float((left**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1))) ** 0.5
    return spread * expected_range(table.shape[1])
