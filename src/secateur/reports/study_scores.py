"""The scores of a study, arranged: settings as rows, the labels of the compared axis as columns, controls beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from secateur.reports.drawing import Table
from secateur.reports.study_facts import DENSE, MAGNITUDE, RANDOM, Axis, Cell, Study

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Repeats of one setting: ``values`` by seed; ``low`` to ``high`` the Student-t interval of their mean, if it has one.

    ``span``: of a control that is not one thing in this setting, the lowest and the highest mean."""

    values: Mapping[str, float]
    asked: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    span: tuple[float, float] | None = None


def summary(values: Mapping[str, float], asked: int) -> Summary:
    """``asked``: how many repeats there should be."""
    known = list(values.values())
    if len(known) < 2:
        return Summary(values, asked, known[0] if known else None)
    from scipy.stats import t

    mean, deviation = statistics.fmean(known), statistics.stdev(known)
    half = float(t.ppf((1 + LEVEL) / 2, len(known) - 1)) * deviation / math.sqrt(len(known))
    return Summary(values, asked, mean, deviation, mean - half, mean + half)


def compared_axis(study: Study) -> Axis | None:
    """The axis that the primary comparison is about: the one its groups do not hold fixed; else the first in words."""
    axes = study.facts.axes
    primary = study.primary
    for group in primary.groups if primary else []:
        free = [axis for axis in axes if axis.name not in group.where]
        holding = [axis for axis in free if group.a in axis.labels] or free
        if holding and len(holding) < max(len(axes), 2):
            return holding[0]
    return next(iter([*(axis for axis in axes if axis.values is None), *axes]), None)


def settings(study: Study, *free: Axis | None) -> list[dict[str, str]]:
    """Every combination of the labels of the axes that are not ``free``, of those that the study has, in declared order."""
    held = [axis for axis in study.facts.axes if axis not in free]
    there = {tuple(cell.where.get(axis.name) for axis in held) for cell in study.cells if not cell.control}
    every = product(*(axis.labels for axis in held))
    return [dict(zip((axis.name for axis in held), labels, strict=True)) for labels in every if labels in there]


def said(where: Mapping[str, str]) -> str:
    """A setting in words."""
    return ", ".join(f"{axis} {label}" for axis, label in where.items()) or "all"


def scores(study: Study, metric: str, where: Mapping[str, str]) -> Summary:
    """The repeats of one setting; ``where`` has a label of every axis."""
    cells = [cell for cell in study.cells if not cell.control and cell.where == where]
    return summary(_values(cells, metric), len(cells))


def control(study: Study, name: str, metric: str, where: Mapping[str, str]) -> Summary:
    """A control as it applies to a setting: cells whose labels, of the axes they have, are those of ``where``.

    Where axes that ``where`` leaves open make a difference to it, there is no one value: then a span of means.
    """
    cells = [
        cell
        for cell in study.cells
        if cell.control == name and all(where.get(axis, label) == label for axis, label in cell.where.items())
    ]
    kinds: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(tuple(cell.where.items()), []).append(cell)
    found = [summary(_values(kind, metric), len(kind)) for kind in kinds.values()]
    if len(found) < 2:
        return found[0] if found else summary({}, 0)
    means = [one.mean for one in found if one.mean is not None]
    return Summary({}, sum(one.asked for one in found), span=(min(means), max(means)) if means else None)


def controls(study: Study) -> list[str]:
    """Those that have cells: first the usual ones."""
    there = {cell.control for cell in study.cells if cell.control}
    return [name for name in dict.fromkeys([DENSE, MAGNITUDE, RANDOM, *sorted(there)]) if name in there]


def _values(cells: Iterable[Cell], metric: str) -> dict[str, float]:
    found = {cell.seed: cell.values.get(metric) for cell in cells if cell.status == "done"}
    return {seed: value for seed, value in found.items() if value is not None}


def score_table(study: Study, metric: str, across: Axis | None) -> Table:
    """Mean and standard deviation over the repeats; how many there were, where some are missing."""
    names = [axis.name for axis in study.facts.axes if axis is not across]
    there = controls(study)
    rows: list[tuple[list[str], list[Summary]]] = []
    for where in settings(study, across):
        found = [scores(study, metric, where | own) for own in labels_of(across)]
        rows.append((list(where.values()), [*found, *(control(study, name, metric, where) for name in there)]))
    places = decimals(
        [one.deviation for _, found in rows for one in found], [one.mean for _, found in rows for one in found]
    )
    spans = any(one.span for _, found in rows for one in found)
    return Table(
        caption=f"{metric}: mean ± standard deviation over the repeats"
        + (f"; a span: over the labels of {across.name}" if across and spans else ""),
        columns=[*names, *(across.labels if across else ["all"]), *there],
        rows=[[*labels, *(shown(one, places) for one in found)] for labels, found in rows],
        heads=len(names),
    )


def labels_of(axis: Axis | None) -> list[dict[str, str]]:
    """Each label as a setting of its own; of no axis, the empty one."""
    return [{axis.name: label} for label in axis.labels] if axis else [{}]


def shown(found: Summary, places: int) -> str:
    """``6.42 ± 0.05``, with ``(4 of 5)`` where repeats are missing; a span as ``6.4 to 7.1``; a dash where there is none."""
    if found.span is not None:
        return " to ".join(number(end, places) for end in found.span)
    if found.mean is None:
        return f"- (0 of {found.asked})" if found.asked else "-"
    size = abs(found.mean)
    places = 0 if size >= 1000 else min(places, 1) if size >= 100 else places
    spread = f" ± {number(found.deviation, places)}" if found.deviation is not None else ""
    few = f" ({len(found.values)} of {found.asked})" if len(found.values) < found.asked else ""
    return number(found.mean, places) + spread + few


def decimals(spreads: Iterable[float | None], values: Iterable[float | None] = ()) -> int:
    """Places after the point that show two digits of the middle one of ``spreads``; else four digits of ``values``."""
    known = sorted(spread for spread in spreads if spread)
    if known:
        return min(max(1 - math.floor(math.log10(known[len(known) // 2])), 0), 4)
    sizes = sorted(abs(value) for value in values if value)
    return min(max(3 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), 4) if sizes else 3


def number(value: float | None, places: int, sign: str = "") -> str:
    """With that many places, fewer where it is large; a true minus sign."""
    if value is None:
        return "-"
    size = abs(value)
    places = 0 if size >= 1000 else min(places, 1) if size >= 100 else places
    text = format(value, f"{sign},.{places}f")
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def rows_of(study: Study, metric: str, across: Axis | None) -> tuple[list[str], list[list[object]]]:
    """Every cell's score for a CSV, controls with their names."""
    names = [axis.name for axis in study.facts.axes]
    cells: Sequence[Cell] = study.cells
    rows: list[list[object]] = [
        [*(cell.where.get(name, "") for name in names), cell.control, cell.seed, cell.status, cell.values.get(metric)]
        for cell in cells
    ]
    return [*names, "control", "seed", "status", metric], rows
