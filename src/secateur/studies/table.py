"""What a comparison sees of a study: one metric by labels and seed, on the scale on which differences are taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Labels = tuple[str, ...]
MOST_IN_PER_CENT = 5.0
"""Differences of logarithms beyond it (148-fold) are said as they are."""


@dataclass(frozen=True)
class Row:
    """One cell and seed: its label on every axis, its metrics (empty: missing) and the facts of its calibration set."""

    labels: Labels
    seed: int
    values: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)


def log_scale(metric: str) -> bool:
    """Whether a metric is compared by its logarithm: a perplexity."""
    return metric.split("/")[-1] in {"perplexity", "ppl", "word_perplexity", "byte_perplexity"}


@dataclass(frozen=True)
class Table:
    """The rows of a study for ``metric``. ``axes``: labels by axis, in the declared order; ``numbers``: of a numeric axis.
    ``sign``: +1 where more is better, else -1. ``logarithms``: whether differences are of them (``None``: of a perplexity)."""

    axes: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Sequence[float] | None]
    rows: Sequence[Row]
    metric: str
    sign: float
    logarithms: bool | None = None

    @property
    def log(self) -> bool:
        return log_scale(self.metric) if self.logarithms is None else self.logarithms

    @property
    def unit(self) -> str:
        return f"log {self.metric}" if self.log else self.metric

    @property
    def seeds(self) -> list[int]:
        return sorted({row.seed for row in self.rows})

    def settings(self, *free: str) -> Iterator[dict[str, str]]:
        """Every combination of labels of the axes that are not ``free``, of those the study has, in their order."""
        names = [name for name in self.axes if name not in free]
        at = [list(self.axes).index(name) for name in names]
        for found in dict.fromkeys(tuple(row.labels[index] for index in at) for row in self.rows):
            yield dict(zip(names, found, strict=True))

    def labels(self, axis: str, where: Mapping[str, str]) -> list[str]:
        """The labels of ``axis`` that the study has with ``where``: excluded ones are not there, missing ones are."""
        index = list(self.axes).index(axis)
        there = {row.labels[index] for row in self._matching(where)}
        return [label for label in self.axes[axis] if label in there]

    def series(self, where: Mapping[str, str]) -> dict[int, float]:
        """The metric by seed where every axis has the label of ``where``; missing cells are not in it."""
        return {row.seed: self.scaled(row.values[self.metric]) for row in self._matching(where) if self._has(row)}

    def facts(self, where: Mapping[str, str], name: str) -> dict[int, float]:
        """A fact of the calibration set by seed."""
        return {row.seed: row.facts[name] for row in self._matching(where) if name in row.facts}

    def complete(self, wheres: Sequence[Mapping[str, str]]) -> dict[int, list[float]]:
        """By seed, the values of all ``wheres``: seeds that lack one are left out."""
        series = [self.series(where) for where in wheres]
        shared = set.intersection(*map(set, series)) if series else set()
        return {seed: [one[seed] for one in series] for seed in sorted(shared)}

    def scaled(self, value: float) -> float:
        return math.log(value) if self.log else value

    def unscaled(self, value: float) -> float:
        return math.exp(value) if self.log else value

    def said(self, difference: float | None) -> str:
        """A difference in words: of logarithms as per cent, else as it is."""
        if difference is None:
            return "unknown"
        if self.log and abs(difference) > MOST_IN_PER_CENT:
            return f"{difference:+.3g} in {self.unit}"
        if self.log:
            return f"{math.expm1(difference):+.2%}"
        return f"{difference:+.4g}"

    def interval_said(self, low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return "no interval: fewer than 2 repeats"
        return f"95 % interval {self.said(low)} to {self.said(high)}"

    def _has(self, row: Row) -> bool:
        value = row.values.get(self.metric)
        return value is not None and math.isfinite(value) and (value > 0 or not self.log)

    def _matching(self, where: Mapping[str, str]) -> Iterator[Row]:
        wanted = [(index, where[name]) for index, name in enumerate(self.axes) if name in where]
        return (row for row in self.rows if all(row.labels[index] == label for index, label in wanted))
