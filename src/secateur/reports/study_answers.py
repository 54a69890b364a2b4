"""What the comparisons found, in words and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.reports.drawing import GREY, Table
from secateur.reports.study_facts import Answer, Group
from secateur.reports.study_scores import decimals, number, said

VERDICTS = {
    "supported": ("#0072B2", "o", "\N{CHECK MARK}"),
    "not supported": ("#D55E00", "X", "\N{MULTIPLICATION X}"),
    "undecided": (GREY, "D", "?"),
}
"""Colour, marker and sign: none is needed to tell them apart."""
LOGARITHM = "log "
SHARE = 5
"""An interval is about so many standard errors wide, of which two digits are shown."""


@dataclass(frozen=True)
class Scale:
    """How an answer's numbers are shown: differences of logarithms as per cent, else as they are."""

    unit: str
    shown: Callable[[float], float]
    per_cent: bool

    def text(self, value: float | None, places: int) -> str:
        return "-" if value is None else number(self.shown(value), places, "+") + (" %" if self.per_cent else "")


def scale_of(answer: Answer) -> Scale:
    """Percentages for differences and slopes of a logarithm, which is how they are said."""
    if answer.unit.startswith(LOGARITHM) and answer.kind in ("difference", "trend"):
        return Scale(
            f"change of {answer.unit.removeprefix(LOGARITHM)}, %", lambda x: 100 * math.expm1(min(x, 50)), True
        )
    what = "difference in " if answer.kind == "difference" else ""
    return Scale(what + (answer.unit or answer.metric), lambda value: value, False)


def interval(answer: Answer) -> str:
    """The estimate and its interval in words, empty where nothing was measured."""
    if answer.estimate is None:
        return ""
    scale = scale_of(answer)
    places = places_of([scale.shown(value) for value in (answer.low, answer.high) if value is not None], answer)
    text = scale.text(answer.estimate, places)
    if answer.low is not None and answer.high is not None:
        bounds = f"{scale.text(answer.low, places)} to {scale.text(answer.high, places)}"
        text += f" ({answer.level:.0%} interval {bounds})".replace("%", " %", 1)
    return f"{text}, {scale.unit}" if not scale.per_cent else f"{text}, {scale.unit.removesuffix(', %')}"


def places_of(bounds: Sequence[float], answer: Answer) -> int:
    widths = [(max(bounds) - min(bounds)) / SHARE] if len(bounds) > 1 else []
    return decimals(widths, [] if answer.estimate is None else [answer.estimate])


def label(group: Group, sides: bool = True) -> str:
    """A setting in words, and what is compared in it."""
    compared = f"{group.a} \N{MINUS SIGN} {group.b}" if sides and group.a and group.b else ""
    where = said(group.where) if group.where else ""
    return ": ".join(part for part in (where, compared) if part) or "all settings"


def groups_table(answer: Answer) -> Table:
    """By setting: estimate, intervals, tests, verdict."""
    scale = scale_of(answer)
    bounds = [scale.shown(v) for group in answer.groups for v in (group.low, group.high) if v is not None]
    widths = [
        (scale.shown(group.high) - scale.shown(group.low)) / SHARE
        for group in answer.groups
        if group.low is not None and group.high is not None
    ]
    places = decimals(widths, bounds)

    def span(low: float | None, high: float | None) -> str:
        return "-" if low is None or high is None else f"{scale.text(low, places)} to {scale.text(high, places)}"

    interval, count = ("interval over labels", "labels") if answer.fact else ("Student-t interval", "n")
    columns = ["setting", scale.unit, interval, "bootstrap interval", count, "p", "p adjusted", "verdict"]
    rows = [
        [
            label(group),
            scale.text(group.estimate, places),
            span(group.low, group.high),
            span(group.bootstrap_low, group.bootstrap_high),
            "-" if group.n is None else str(group.n),
            probability(group.p),
            probability(group.p_adjusted),
            group.verdict or "-",
        ]
        for group in answer.groups
    ]
    return Table(answer.adjustment or "by setting", columns, rows)


def probability(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def levels_table(answer: Answer) -> Table | None:
    """Of a spread: the range at every level, and what noise alone would show."""
    rows: list[Mapping[str, Any]] = [
        {"setting": said(group.where), **level} for group in answer.groups for level in group.levels
    ]
    if not rows:
        return None
    keys = ("estimate", "low", "high", "noise")
    places = decimals([], [row.get(key) for row in rows for key in keys])

    def cell(value: Any) -> str:
        return number(value, places) if isinstance(value, int | float) else "-"

    return Table(
        "The range at every level, and what seeds alone would show",
        ["setting", "level", "range", "interval", "from noise alone"],
        [
            [
                row["setting"],
                str(row.get("label", "")),
                cell(row.get("estimate")),
                f"{cell(row.get('low'))} to {cell(row.get('high'))}",
                cell(row.get("noise")),
            ]
            for row in rows
        ],
        heads=2,
    )
