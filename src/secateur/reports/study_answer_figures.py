"""What the comparisons found, drawn: intervals on a line, every repeat a dot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateur.reports.drawing import GREY, INK, Drawing, cut, new_figure, style, svg_of
from secateur.reports.study_answers import VERDICTS, Scale, groups_table, label, places_of, scale_of
from secateur.reports.study_facts import Answer, Group
from secateur.reports.study_scores import number, said

SHOWN = 12
"""So many settings are drawn with an answer; all of them are under the paired differences."""
LETTERS, HEIGHT = 60, 0.46
WIDE_RANGE = 40


@dataclass(frozen=True)
class Line:
    """One line of an interval plot, on the shown scale."""

    label: str
    estimate: float | None
    interval: tuple[float | None, float | None]
    bootstrap: tuple[float | None, float | None] = (None, None)
    dots: Sequence[float] = ()
    verdict: str = ""


def answer_figure(answer: Answer, index: int) -> Drawing | None:
    """The overall estimate, and those by setting where they are few; of several candidates, the estimate of each."""
    scale = scale_of(answer)
    several = len(_sides(answer)) > 1
    if len(answer.candidates) > 1:
        lines = [_line(scale, one.a or "", one) for one in answer.candidates if one.estimate is not None]
        return _overall(index, answer, lines, scale, "Over all settings; verdicts by Holm among these.")
    lines = [_line(scale, "all settings", answer)] if answer.estimate is not None else []
    if len(answer.groups) <= SHOWN or not lines:
        lines += [
            _line(scale, label(group, several), group) for group in answer.groups[:SHOWN] if group.estimate is not None
        ]
        if len(lines) == 2 and lines[0].estimate == lines[1].estimate:
            del lines[0]
    more = (
        [f"The first {SHOWN} of {len(answer.groups)} settings."]
        if len(answer.groups) > SHOWN and len(lines) > 1
        else []
    )
    adjusted = [f"Multiple comparisons: {answer.adjustment}."] if answer.adjustment else []
    return _overall(index, answer, lines, scale, " ".join(more + adjusted))


def _overall(index: int, answer: Answer, lines: Sequence[Line], scale: Scale, more: str) -> Drawing | None:
    if not lines:
        return None
    caption = f"Estimates with {answer.level * 100:g} % intervals; zero is no effect. {_legend(lines)} {more}".strip()
    return _drawing(f"answer-{index + 1}", answer.question, caption, lines, scale, answer)


def paired_figure(answer: Answer, index: int) -> Drawing | None:
    """Every repeat of every setting."""
    scale = scale_of(answer)
    several = len(_sides(answer)) > 1
    lines = [_line(scale, label(group, several), group, _dots(group, scale)) for group in answer.groups if group.pairs]
    if not lines:
        return None
    rows = [
        [said(group.where), group.a or "", group.b or "", pair.seed, pair.a, pair.b, pair.difference]
        for group in answer.groups
        for pair in group.pairs
    ]
    columns = ["setting", "a", "b", "seed", "value of a", "value of b", "difference"]
    caption = (
        "A dot is one seed (paired: both sides share the calibration draw). The large mark is the mean, the thick line its "
        f"Student-t {answer.level * 100:g} % interval, the thin one the bootstrap interval. {_legend(lines)}"
    )
    drawing = _drawing(f"paired-{index + 1}", answer.question, caption, lines, scale, answer)
    return replace(drawing, columns=columns, rows=rows, tables=[groups_table(answer)])


def _line(scale: Scale, name: str, found: Answer | Group, dots: Sequence[float] = ()) -> Line:
    def shown(value: float | None) -> float | None:
        return None if value is None else scale.shown(value)

    bootstrap = (found.bootstrap_low, found.bootstrap_high) if isinstance(found, Group) and dots else (None, None)
    return Line(
        name,
        shown(found.estimate),
        (shown(found.low), shown(found.high)),
        (shown(bootstrap[0]), shown(bootstrap[1])),
        dots,
        found.verdict or "",
    )


def _dots(group: Group, scale: Scale) -> list[float]:
    return [scale.shown(pair.difference) for pair in group.pairs if pair.difference is not None]


def _legend(lines: Sequence[Line]) -> str:
    names = {"o": "circle, blue", "X": "cross, orange", "D": "diamond, grey"}
    there = [verdict for verdict in VERDICTS if any(line.verdict == verdict for line in lines)]
    return "Marks: " + "; ".join(f"{names[VERDICTS[one][1]]}: {one}" for one in there) + "." if there else ""


def _drawing(name: str, title: str, caption: str, lines: Sequence[Line], scale: Scale, answer: Answer) -> Drawing:
    known = [line for line in lines if line.estimate is not None]
    places = places_of([value for line in known[:1] for value in line.interval if value is not None], answer)
    facts = [f"{line.label}: {number(line.estimate, places, '+')}{_to(line, places)}" for line in known[:SHOWN]]
    more = f"; and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    rows = [[line.label, line.estimate, *line.interval, line.verdict] for line in lines]
    return Drawing(
        name=name,
        title=title,
        caption=caption,
        alt=f"Intervals on a line, {scale.unit}. {'; '.join(facts)}{more}.",
        svg=_intervals(lines, _axis_title(scale, answer)),
        columns=["setting", scale.unit, "low", "high", "verdict"],
        rows=rows,
    )


def _sides(answer: Answer) -> list[tuple[str | None, str | None]]:
    """What is compared with what, over all settings."""
    return list(dict.fromkeys((group.a, group.b) for group in answer.groups))


def _to(line: Line, places: int) -> str:
    low, high = line.interval
    return "" if low is None or high is None else f" ({number(low, places, '+')} to {number(high, places, '+')})"


def _axis_title(scale: Scale, answer: Answer) -> str:
    """With which side is which, where all settings compare the same two."""
    sides = _sides(answer)
    if len(sides) == 1 and all(sides[0]):
        one, other = (cut(side or "", 16) for side in sides[0])
        return f"{cut(scale.unit, 30)}: {one} \N{MINUS SIGN} {other}"
    if len(baselines := {other for _, other in sides if other}) == 1:
        return f"{cut(scale.unit, 30)}: each \N{MINUS SIGN} {cut(baselines.pop(), 22)}"
    return cut(scale.unit, LETTERS)


def _intervals(lines: Sequence[Line], title: str) -> str:
    """Labels above their lines, so that a narrow screen has all its width for the numbers."""
    with style():
        figure, (axes,) = new_figure(HEIGHT * len(lines) + 0.65)
        ends = [
            end
            for line in lines
            for end in (*line.interval, *line.bootstrap, line.estimate, *line.dots)
            if end is not None
        ]
        if _wide(lines):
            _squeeze(axes, ends)
            title += " (asinh scale)"
        for row, line in enumerate(lines):
            axes.plot([0, 0], [row - 0.24, row + 0.3], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
            _draw(axes, row, line)
        axes.set_ylim(len(lines) - 0.45, -0.75)
        axes.margins(x=0.06)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6) if not _wide(lines) else None
        axes.set_xlabel(title)
        return svg_of(figure)


def _squeeze(axes: Any, ends: Sequence[float]) -> None:
    """Three decades of an asinh scale, marked at zero and every power of ten there: left alone, marks run into each other."""
    largest = max(map(abs, ends))
    top = math.floor(math.log10(largest))
    powers = [10.0**power for power in (top - 2, top - 1, top)]
    marks = [sign * power for power in powers for sign in (-1, 1) if power > 3e-3 * largest]
    axes.set_xscale("asinh", linear_width=largest / 1e3)
    axes.set_xticks(sorted([0.0, *(mark for mark in marks if min(ends) <= mark <= max(ends))]))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}".replace("-", "\N{MINUS SIGN}"))


def _wide(lines: Iterable[Line]) -> bool:
    """Whether one line's numbers would squeeze the others' to a point."""
    sizes = sorted(
        max(map(abs, known))
        for line in lines
        if (known := [end for end in (*line.interval, line.estimate) if end is not None]) and any(known)
    )
    return len(sizes) > 1 and sizes[-1] > WIDE_RANGE * sizes[len(sizes) // 2]


def _draw(axes: Any, row: int, line: Line) -> None:
    colour, marker, _ = VERDICTS.get(line.verdict, (GREY, "o", ""))
    strong = line.label == "all settings"
    axes.text(
        0, row - 0.28, cut(line.label, LETTERS), transform=axes.get_yaxis_transform(), va="bottom", fontsize=9,
        fontweight="bold" if strong else "normal",
    )  # fmt: skip
    for (low, high), width, y in ((line.bootstrap, 1.0, row + 0.17), (line.interval, 3.2, row)):
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color=colour, linewidth=width, solid_capstyle="butt", zorder=2)
    if line.dots:
        heights = [row - 0.12 + 0.24 * (place % 3) / 2 for place in range(len(line.dots))]
        axes.scatter(line.dots, heights, s=11, facecolor="none", edgecolor=INK, linewidth=0.7, zorder=3)
    if line.estimate is not None:
        axes.plot(
            [line.estimate], [row], marker=marker, color=colour, markersize=8.5 if strong else 7.5, zorder=4,
            markeredgecolor="white", markeredgewidth=0.6, linestyle="",
        )  # fmt: skip
