"""How far apart the labels of one axis are, and whether that grows along another axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Comparison, Estimate, confirmed, counted, judge, overall, repeats, that
from secateur.studies.intervals import estimate
from secateur.studies.ranges import beyond_noise, noise, over_settings
from secateur.studies.table import Table


@dataclass(frozen=True)
class Spread(Comparison):
    """The range (highest less lowest) of the metric over the labels of ``axis``, for each label of ``along``, by seed;
    and its slope along that axis: per unit where the labels are numbers, else per step in the declared order. Only labels
    that the study has at every level count.

    The claim is that it grows. Seeds alone make labels differ, so each level also has ``noise``, the range that labels
    without any difference would show. Noise that grows looks like a range that grows, so the square of the range beyond
    noise must grow for sure too (jackknife over seeds), or the answer is undecided.
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
        groups, estimates, slopes, grids, places = [], [], [], [], []
        for where in table.settings(self.axis, self.along):
            levels = table.labels(self.along, where)
            values = self._values(table, where, levels)
            place = self._places(table, levels)
            by_seed = {seed: _slope(place, np.ptp(grid, axis=1)) for seed, grid in values.items()}
            grid = np.array(list(values.values())) if values else np.empty((0, len(levels), 0))
            found = estimate(list(by_seed.values()))
            pairs = [{"seed": seed, "difference": slope} for seed, slope in by_seed.items()]
            groups.append({"where": where, **found.fields, "levels": _levels(levels, grid), "pairs": pairs})
            estimates.append(found)
            slopes.append(by_seed)
            grids.append(values)
            places.append(place)
        checks = [_beyond([grid], [place]) for grid, place in zip(grids, places, strict=True)]
        adjusted = judge(groups, estimates, 1.0, checks)
        whole, check = overall(slopes), _beyond(grids, places)
        return {
            "sentence": self._sentence(table, groups, whole, check) + counted(groups),
            "verdict": confirmed(whole.verdict(1.0), 1.0, check),
            "estimate": whole.mean,
            "low": whole.low,
            "high": whole.high,
            "beyond_noise": {"estimate": check.mean, "low": check.low, "high": check.high},
            "adjustment": adjusted,
            "unit": f"{table.unit} per {'unit' if table.numbers.get(self.along) else 'step'} of {self.along}",
            "groups": groups,
        }

    def _values(self, table: Table, where: Mapping[str, str], levels: Sequence[str]) -> dict[int, np.ndarray]:
        """By seed ``[levels, labels]``, of the labels that are there at every level and the seeds that have all cells."""
        there = [set(table.labels(self.axis, {**where, self.along: level})) for level in levels]
        labels = [label for label in table.axes[self.axis] if there and all(label in level for level in there)]
        if min(len(labels), len(levels)) < 2:
            return {}
        cells = [{**where, self.along: level, self.axis: label} for level in levels for label in labels]
        complete = table.complete(cells)
        return {seed: np.array(found).reshape(len(levels), len(labels)) for seed, found in complete.items()}

    def _places(self, table: Table, levels: Sequence[str]) -> list[float]:
        numbers, labels = table.numbers.get(self.along), list(table.axes[self.along])
        return [float(numbers[labels.index(level)] if numbers else labels.index(level)) for level in levels]

    def _sentence(self, table: Table, groups: Sequence[Mapping[str, Any]], whole: Estimate, check: Estimate) -> str:
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
        verdict = confirmed(whole.verdict(1.0), 1.0, check)
        noisy = ", for what is beyond the noise does not for sure" if verdict != whole.verdict(1.0) else ""
        return (
            f"The range of {table.metric} over {self.axis} is {', '.join(means)}; it changes by {whole.mean:+.3g} {table.unit} "
            f"per {per} of {self.along} ({interval}, {repeats(whole)}): {that(verdict, 'it grows')}{noisy}."
        )


def _slope(places: Sequence[float], values: np.ndarray) -> float:
    return float(np.polyfit(places, values, 1)[0])


def _levels(levels: Sequence[str], grid: np.ndarray) -> list[dict[str, Any]]:
    """Of every level its range with interval, and the noise; ``grid`` ``[seeds, levels, labels]``."""
    return [
        {
            "label": level,
            "labels": grid.shape[2],
            **estimate(list(np.ptp(grid[:, place], axis=1)) if grid.size else []).fields,
            "noise": noise(grid[:, place]),
        }
        for place, level in enumerate(levels)
    ]


def _beyond(grids: Sequence[Mapping[int, np.ndarray]], places: Sequence[Sequence[float]]) -> Estimate:
    """The slope of the squared range beyond noise, the mean over settings."""

    def slope(setting: int, values: np.ndarray) -> float:
        place = places[setting]
        return _slope(place, np.array([beyond_noise(values[:, level]) for level in range(len(place))]))

    return over_settings(grids, slope)
