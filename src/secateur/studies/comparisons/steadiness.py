"""How much seeds alone move the metric, of labels of one axis against a baseline label."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from secateur.studies.comparisons.difference import Difference
from secateur.studies.table import Row, Table

CLAIMS = {"better": "steadier", "worse": "less steady", "different": "more or less steady"}


@dataclass(frozen=True)
class Steadiness(Difference):
    """As ``Difference``, of how far each repeat is from the median over the repeats of its cell (on the logarithm, where the
    metric is a perplexity): what a single draw of calibration data may do. Less is steadier, whichever way the metric goes.

    Differences of absolute deviations from medians are what Brown and Forsythe (1974) compare, here paired by seed.
    """

    kind: ClassVar[str] = "steadiness"

    def asked(self) -> str:
        return super().asked().replace(f" {self.claim} than ", f" {CLAIMS[self.claim]} over seeds than ")

    def answer(self, table: Table) -> dict[str, Any]:
        unit = f"deviation of {table.unit}"
        deviations = replace(table, metric=unit, rows=_deviations(table, unit), sign=-1.0, logarithms=False)
        return super().answer(deviations) | {"unit": unit}


def _deviations(table: Table, name: str) -> list[Row]:
    """Every row's distance from the median over the seeds of its labels; rows without a value stay without."""
    names, found = list(table.axes), []
    for labels in dict.fromkeys(row.labels for row in table.rows):
        series = table.series(dict(zip(names, labels, strict=True)))
        middle = statistics.median(series.values()) if series else 0.0
        for row in (row for row in table.rows if row.labels == labels):
            values = {name: abs(series[row.seed] - middle)} if row.seed in series else {}
            found.append(Row(labels, row.seed, values, row.facts))
    return found
