"""All scores, and curves along numeric axes, with the dense and magnitude-pruned models as lines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.reports.drawing import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    Drawing,
    cut,
    look,
    new_figure,
    plain_log_ticks,
    short_names,
    style,
    svg_of,
)
from secateur.reports.study_facts import DENSE, MAGNITUDE, RANDOM, Axis, Study
from secateur.reports.study_scores import (
    Summary,
    control,
    controls,
    decimals,
    labels_of,
    number,
    rows_of,
    said,
    score_table,
    scores,
    settings,
)

PANELS, LINES_SHOWN, LETTERS = 12, 8, 50
WIDE, FAR = 20, 1.5
CONTROL_LINES: Mapping[str, tuple[str, Any, float]] = {DENSE: (INK, "-", 1.3), MAGNITUDE: (GREY, (0, (5, 2)), 1.6)}


def file_stem(*parts: object) -> str:
    """A name for a file, whatever the axis or metric is called."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, parts)).lower()).strip("-")[:60]


def score_figure(study: Study, number_: int, across: Axis | None) -> Drawing | None:
    """Every score of one metric: a panel a setting, a row a label of the compared axis, a dot a seed."""
    metric = study.metrics[number_]
    panels = [where for where in settings(study, across) if _measured(study, metric, where, across)]
    if not panels:
        return None
    shown = panels[:PANELS]
    rows = len(_rows(study, metric, shown[0], across))
    with style():
        figure, axes = new_figure((0.24 * rows + 0.72) * len(shown) + 0.2, len(shown))
        for axis, where in zip(axes, shown, strict=True):
            _panel(axis, study, metric, where, across)
        axes[-1].set_xlabel(_with_direction(study, metric))
        svg = svg_of(figure)
    columns, table = rows_of(study, metric, across)
    names = ", ".join(across.labels) if across else "the settings"
    more = f" The first {PANELS} of {len(panels)} settings; the table has all." if len(panels) > PANELS else ""
    return Drawing(
        name=file_stem("scores", number_ + 1, metric),
        title=f"{metric}, every repeat",
        caption="A dot is one seed, the bar their mean; a panel has its own scale. Lines are the controls with their values "
        f"above the panel; one that lies far off is named only.{more}",
        alt=f"{metric} of {names} in {len(shown)} settings, a dot a seed. The table of scores has the means.",
        svg=svg,
        columns=columns,
        rows=table,
        tables=[score_table(study, metric, across)],
    )


def _rows(study: Study, metric: str, where: Mapping[str, str], across: Axis | None) -> list[tuple[str, Summary]]:
    """A row of a panel: a label and its repeats; random tokens are one more."""
    found = [(next(iter(own.values()), "all"), scores(study, metric, {**where, **own})) for own in labels_of(across)]
    return found + [
        (name, control(study, name, metric, where)) for name in controls(study) if name not in CONTROL_LINES
    ]


def _measured(study: Study, metric: str, where: Mapping[str, str], across: Axis | None) -> bool:
    return any(found.values for _, found in _rows(study, metric, where, across))


def _panel(axis: Any, study: Study, metric: str, where: Mapping[str, str], across: Axis | None) -> None:
    rows = _rows(study, metric, where, across)
    values = [value for _, found in rows for value in found.values.values()]
    if min(values) > 0 and max(values) > WIDE * min(values):
        axis.set_xscale("log")
    order = {seed: place for place, seed in enumerate(sorted({seed for _, found in rows for seed in found.values}))}
    for row, (_, found) in enumerate(rows):
        colour = COLOURS[row % len(COLOURS)]
        heights = [row - 0.22 + 0.44 * order[seed] / max(len(order) - 1, 1) for seed in found.values]
        axis.scatter(
            list(found.values.values()), heights, s=14, color=colour, marker=MARKERS[row % len(MARKERS)], linewidth=0
        )
        if found.mean is not None:
            axis.plot([found.mean, found.mean], [row - 0.36, row + 0.36], color=INK, linewidth=1.8)
    low, high = min(values), max(values)
    told = []
    for name, (colour, dashes, width) in CONTROL_LINES.items():
        at = control(study, name, metric, where).mean
        if at is None:
            continue
        near = low - FAR * (high - low) <= at <= high + FAR * (high - low)
        told.append(f"{name} {number(at, decimals([], [at]))}" + ("" if near else " (off the scale)"))
        if near:
            axis.axvline(at, color=colour, linestyle=dashes, linewidth=width, zorder=0)
    if axis.get_xscale() == "log":
        plain_log_ticks(axis.xaxis, *(math.log10(end) for end in axis.get_xlim()))
    else:
        axis.locator_params(axis="x", nbins=6)
    axis.set_yticks(range(len(rows)), short_names([name for name, _ in rows], 16))
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    title = cut(said(where), LETTERS) if where else ""
    axis.set_title("\n".join(part for part in (title, ", ".join(told)) if part), fontsize=9, loc="left", pad=3)


def _with_direction(study: Study, metric: str) -> str:
    primary = study.facts.metric
    return f"{metric} ({primary.better} is better)" if primary.name == metric and primary.better else metric


def curve_figures(study: Study, across: Axis | None) -> list[Drawing]:
    """The primary metric along every numeric axis of at least two numbers."""
    numeric = [axis for axis in study.facts.axes if axis.values and len(set(axis.values)) > 1]
    drawn = [_curve(study, place, axis, across) for place, axis in enumerate(numeric)]
    return [drawing for drawing in drawn if drawing is not None]


def _curve(study: Study, place: int, along: Axis, across: Axis | None) -> Drawing | None:
    metric = study.facts.metric.name
    others = [axis for axis in study.facts.axes if axis is not along and len(axis.labels) <= LINES_SHOWN]
    line = across if across in others else next(iter(others), None)
    panels = [where for where in settings(study, along, line) if _points(study, metric, where, along, line)]
    if not panels:
        return None
    shown = panels[:PANELS]
    with style():
        figure, axes = new_figure(2.1 * len(shown) + 0.75, len(shown), sharex=True)
        for axis, where in zip(axes, shown, strict=True):
            _lines(axis, study, metric, where, along, line)
        axes[-1].set_xlabel(cut(along.name, LETTERS))
        axes[len(shown) // 2].set_ylabel(_with_direction(study, metric))
        handles: dict[str, Any] = {}
        for axis in axes:
            handles |= {text: handle for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        columns = 2 if max(map(len, handles)) > 12 else 3
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
        svg = svg_of(figure)
    rows = [
        [said(where), *point]
        for where in panels
        for point in _points(study, metric, where, along, line)
    ]  # fmt: skip
    names = f", a line each {line.name}" if line else ""
    return Drawing(
        name=file_stem("curve", place + 1, along.name),
        title=f"{metric} along {along.name}",
        caption=f"Means over the seeds with Student-t 95 % intervals{names}.",
        alt=f"Curves of {metric} along {along.name}{names}. The numbers are in the table of scores and in the CSV.",
        svg=svg,
        columns=["setting", "line", along.name, "mean", "low", "high", "repeats"],
        rows=rows,
    )


def _places(along: Axis) -> list[tuple[str, float]]:
    return sorted(zip(along.labels, along.values or [], strict=False), key=lambda one: one[1])


def _points(
    study: Study, metric: str, where: Mapping[str, str], along: Axis, line: Axis | None
) -> list[tuple[str, float, float, float | None, float | None, int]]:
    """By line and number, the mean and its interval, of what was measured; controls are lines too."""
    found = []
    for own in labels_of(line):
        for label, value in _places(along):
            one = scores(study, metric, {**where, **own, along.name: label})
            found.append((next(iter(own.values()), metric), value, one))
    for name in (DENSE, MAGNITUDE, RANDOM):
        for label, value in _places(along):
            found.append((name, value, control(study, name, metric, {**where, along.name: label})))
    return [
        (name, value, one.mean, one.low, one.high, len(one.values))
        for name, value, one in found
        if one.mean is not None
    ]


def _lines(axis: Any, study: Study, metric: str, where: Mapping[str, str], along: Axis, line: Axis | None) -> None:
    points = _points(study, metric, where, along, line)
    names = list(dict.fromkeys(name for name, *_ in points))
    labels = [*(line.labels if line else [metric])]
    for name, short in zip(names, short_names(names, 18), strict=True):
        mine = [point for point in points if point[0] == name]
        xs, means = [point[1] for point in mine], [point[2] for point in mine]
        if name in CONTROL_LINES and name not in labels:
            colour, dashes, width = CONTROL_LINES[name]
            axis.plot(xs, means, color=colour, linestyle=dashes, linewidth=width, label=short, zorder=1)
            continue
        how = look(labels.index(name) if name in labels else len(labels))
        axis.plot(xs, means, label=short, **how)
        bars = [(x, low, high) for _, x, _, low, high, _ in mine if low is not None and high is not None]
        axis.vlines(*zip(*bars, strict=True), color=how["color"], linewidth=1.1) if bars else None
    _scales(axis, [point[2] for point in points], [value for _, value in _places(along)])
    if where:
        axis.set_title(cut(said(where), LETTERS), fontsize=9, loc="left", pad=3)


def _scales(axis: Any, heights: Iterable[float], places: Sequence[float]) -> None:
    """Logarithmic where the numbers span much; every number of the axis is a tick where there is room."""
    from matplotlib.ticker import FixedLocator, NullLocator

    heights = list(heights)
    if min(heights) > 0 and max(heights) > WIDE * min(heights):
        axis.set_yscale("log")
        plain_log_ticks(axis.yaxis, *(math.log10(end) for end in axis.get_ylim()))
    positive = [place for place in places if place > 0]
    if positive and min(places) >= 0 and max(places) >= 16 * min(positive):
        axis.set_xscale("log") if min(places) > 0 else axis.set_xscale("symlog", linthresh=min(positive))
    if len(places) <= 8:
        axis.xaxis.set_major_locator(FixedLocator(list(places)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
