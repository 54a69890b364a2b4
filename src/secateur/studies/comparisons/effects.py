"""Which of two axes matters more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.errors import RecipeError
from secateur.studies.comparisons.base import Comparison, Estimate, confirmed, counted, judge, overall, repeats, that
from secateur.studies.intervals import estimate
from secateur.studies.ranges import beyond_noise, over_settings
from secateur.studies.table import Table


@dataclass(frozen=True)
class Effects(Comparison):
    """The range over the labels of ``axis`` (the mean over those of ``against`` taken first) less the range over the labels
    of ``against`` (likewise), by seed. The claim is that ``axis`` matters more.

    A range grows with the number of labels, so both numbers are told; it grows with the noise of seeds too, so the squared
    ranges beyond noise must differ the same way for sure (jackknife over seeds), or the answer is undecided. Only labels
    that the study has in every combination of the two axes count.
    """

    axis: str = ""
    against: str = ""
    kind: ClassVar[str] = "effects"

    def check(self, axes: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float] | None]) -> None:
        self._known("an axis", self.axis, axes)
        self._known("against, another axis", self.against, axes)
        if self.axis == self.against or min(len(axes[self.axis]), len(axes[self.against])) < 2:
            raise RecipeError(
                f"The comparison effects needs two axes of at least 2 labels; found {self.axis!r} and {self.against!r}."
            )

    def asked(self) -> str:
        return f"Does {self.axis} matter more than {self.against}?"

    def answer(self, table: Table) -> dict[str, Any]:
        groups, estimates, all_differences, all_grids = [], [], [], []
        ranges: dict[str, list[dict[int, float]]] = {self.axis: [], self.against: []}
        for where in table.settings(self.axis, self.against):
            rows = self._in_all(table, where)
            columns = table.labels(self.against, where)
            values = table.complete(
                [where | {self.axis: one, self.against: other} for one in rows for other in columns]
            )
            grids = {seed: np.array(found).reshape(len(rows), len(columns)) for seed, found in values.items()}
            if min(len(rows), len(columns)) < 2:
                grids = {}
            mine = {seed: float(np.ptp(grid.mean(axis=1))) for seed, grid in grids.items()}
            others = {seed: float(np.ptp(grid.mean(axis=0))) for seed, grid in grids.items()}
            ranges[self.axis].append(mine)
            ranges[self.against].append(others)
            differences = {seed: mine[seed] - others[seed] for seed in grids}
            found = estimate(list(differences.values()))
            pairs = [
                {"seed": seed, "a": mine[seed], "b": others[seed], "difference": differences[seed]} for seed in grids
            ]
            entry = {"where": where, "a": self.axis, "b": self.against, "labels": [len(rows), len(columns)]}
            groups.append({**entry, **found.fields, "pairs": pairs})
            estimates.append(found)
            all_differences.append(differences)
            all_grids.append(grids)
        adjusted = judge(groups, estimates, 1.0, [_beyond([grids]) for grids in all_grids])
        whole, check = overall(all_differences), _beyond(all_grids)
        return {
            "sentence": self._sentence(table, groups, ranges, whole, check) + counted(groups),
            "verdict": confirmed(whole.verdict(1.0), 1.0, check),
            "estimate": whole.mean,
            "low": whole.low,
            "high": whole.high,
            "beyond_noise": {"estimate": check.mean, "low": check.low, "high": check.high},
            "adjustment": adjusted,
            "groups": groups,
        }

    def _in_all(self, table: Table, where: Mapping[str, str]) -> list[str]:
        """The labels of ``axis`` that are there with every label of ``against``."""
        columns = table.labels(self.against, where)
        there = [set(table.labels(self.axis, {**where, self.against: column})) for column in columns]
        return [label for label in table.labels(self.axis, where) if all(label in labels for labels in there)]

    def _sentence(
        self, table: Table, groups: Sequence[Mapping[str, Any]], ranges: Any, whole: Estimate, check: Estimate
    ) -> str:
        if whole.mean is None:
            return f"{self.axis} and {self.against} cannot be compared: no seed has all of their cells."
        shown = []
        for number, name in enumerate((self.axis, self.against)):
            found = overall(ranges[name])
            labels = max(group["labels"][number] for group in groups)
            shown.append(f"{table.said(found.mean).lstrip('+')} over {name} ({labels} labels)")
        interval = "no interval" if whole.low is None else f"95 % interval {whole.low:+.3g} to {whole.high:+.3g}"
        verdict = confirmed(whole.verdict(1.0), 1.0, check)
        noisy = ", for what is beyond the noise of seeds does not for sure" if verdict != whole.verdict(1.0) else ""
        return (
            f"{table.metric} has a range of {shown[0]} and of {shown[1]}; the first less the second is {whole.mean:+.3g} "
            f"{table.unit} ({interval}, {repeats(whole)}): {that(verdict, f'{self.axis} matters more')}{noisy}."
        )


def _beyond(grids: Sequence[Mapping[int, np.ndarray]]) -> Estimate:
    """The squared range beyond noise over the first axis less that over the second, the mean over settings."""
    return over_settings(grids, lambda _, one: beyond_noise(one.mean(axis=2)) - beyond_noise(one.mean(axis=1)))
