"""A fact of the calibration sets against the metric: what a correlation is about, every set a dot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.reports.drawing import (
    COLOURS,
    MARKERS,
    Drawing,
    cut,
    new_figure,
    plain_log_ticks,
    short_names,
    style,
    svg_of,
)
from secateur.reports.study_answers import groups_table
from secateur.reports.study_facts import Answer, Group
from secateur.reports.study_scores import said

PANELS, LETTERS, WIDE = 6, 50, 3.0


@dataclass(frozen=True)
class Point:
    """One calibration set and what its pruned model measured."""

    seed: str
    label: str
    fact: float
    value: float


def fact_figure(answer: Answer, index: int) -> Drawing | None:
    """The points of a correlation, a panel a setting; nothing for other comparisons."""
    panels = [(group, points) for group in answer.groups if (points := _points(group))]
    if answer.fact is None or not panels:
        return None
    shown = panels[:PANELS]
    labels = list(dict.fromkeys(point.label for _, points in panels for point in points))
    more = f" The first {PANELS} of {len(panels)} settings." if len(panels) > PANELS else ""
    return Drawing(
        name=f"facts-{index + 1}",
        title=f"{answer.metric} by {answer.fact}",
        caption=f"A dot is one calibration set: its {answer.fact}, and the {answer.metric} of the model pruned with it. "
        f"The correlation is of the means of each label.{more}",
        alt=f"{answer.metric} against {answer.fact}, a dot a set, of {', '.join(labels)}. The numbers are in the CSV.",
        svg=_drawn(answer, shown, labels),
        columns=["setting", "label", "seed", answer.fact, answer.metric],
        rows=[
            [said(group.where), point.label, point.seed, point.fact, point.value]
            for group, points in panels
            for point in points
        ],
        tables=[groups_table(answer)],
    )


def _points(group: Group) -> list[Point]:
    return [
        Point(str(one["seed"]), str(one["label"]), float(one["fact"]), float(one["value"]))
        for one in group.points
        if one.get("fact") is not None and one.get("value") is not None
    ]


def _drawn(answer: Answer, panels: Sequence[tuple[Group, Sequence[Point]]], labels: Sequence[str]) -> str:
    with style():
        figure, axes = new_figure(1.9 * len(panels) + 0.3 * math.ceil(len(labels) / 2) + 0.7, len(panels), sharex=True)
        for axis, (group, points) in zip(axes, panels, strict=True):
            _panel(axis, points, labels)
            axis.set_title(cut(said(group.where), LETTERS) if group.where else "", fontsize=9, loc="left", pad=3)
        axes[-1].set_xlabel(cut(answer.fact or "", LETTERS))
        axes[len(panels) // 2].set_ylabel(cut(answer.metric, LETTERS))
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return svg_of(figure)


def _panel(axis: Any, points: Sequence[Point], labels: Sequence[str]) -> None:
    for place, (label, name) in enumerate(zip(labels, short_names(labels), strict=True)):
        mine = [point for point in points if point.label == label]
        axis.scatter(
            [point.fact for point in mine],
            [point.value for point in mine],
            s=16,
            label=name,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
            linewidth=0,
        )
    values = [point.value for point in points]
    if min(values) > 0 and max(values) > WIDE * min(values):
        axis.set_yscale("log")
        plain_log_ticks(axis.yaxis, *(math.log10(end) for end in axis.get_ylim()))
    else:
        axis.locator_params(axis="y", nbins=5)
    axis.locator_params(axis="x", nbins=6)
