"""What a study's folder says, as types: its axes, cells, answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

DENSE, MAGNITUDE, RANDOM = "dense", "magnitude", "random tokens"

_Finite = Annotated[
    float | None, BeforeValidator(lambda value: value if not isinstance(value, float) or math.isfinite(value) else None)
]
_Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class Axis(BaseModel):
    """What was varied: its labels, and the numbers behind them where they are numbers."""

    name: str
    labels: list[_Text]
    values: list[float] | None = None

    def label(self, value: Any) -> str:
        """The label a cell of the results means; numbers may have lost how they were written."""
        if value is None or str(value) in ("", *self.labels):
            return "" if value is None else str(value)
        for label, number in zip(self.labels, self.values or [], strict=False):
            if isinstance(value, int | float) and math.isclose(value, number, rel_tol=1e-9):
                return label
        return str(value)


class Metric(BaseModel):
    """The one that was declared beforehand to decide."""

    name: str
    better: str | None = None


class Facts(BaseModel, extra="allow"):
    """``study.json``."""

    question: str
    axes: list[Axis]
    metric: Metric
    metrics: list[str] = []
    evaluation: list[str] = []
    repeats: list[int] = []
    controls: list[str] = []
    comparisons: list[dict[str, Any]] = []
    excluded: int = 0
    digest: str = ""
    model: Any = None
    recipe: Any = None
    environment: dict[str, Any] = {}
    cost: dict[str, Any] = {}
    command: Any = None
    notes: list[str] = []


class Pair(BaseModel):
    """One repeat of a paired comparison."""

    seed: int | str
    a: _Finite = None
    b: _Finite = None
    difference: _Finite = None


class Estimate(BaseModel, extra="allow"):
    """A number with its interval, and whether it bears out what was asked."""

    estimate: _Finite = None
    low: _Finite = None
    high: _Finite = None
    verdict: str | None = None


class Group(Estimate):
    """One setting in which a comparison was made."""

    where: dict[str, _Text] = {}
    a: _Text | None = None
    b: _Text | None = None
    bootstrap_low: _Finite = None
    bootstrap_high: _Finite = None
    p: _Finite = None
    p_adjusted: _Finite = None
    n: int | None = None
    pairs: list[Pair] = []
    levels: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []


class Answer(Estimate):
    """What one declared comparison found."""

    question: str = ""
    kind: str = ""
    metric: str = ""
    sentence: str = ""
    level: float = 0.95
    unit: str = ""
    adjustment: str = ""
    primary: bool = False
    fact: str | None = None
    candidates: list[Group] = []
    groups: list[Group] = []


@dataclass(frozen=True)
class Cell:
    """One run of the study: where on the axes, with which seed or as which control, and what it measured.

    ``where`` has only the axes that apply; ``values`` ``None`` where there is no number.
    """

    digest: str
    where: Mapping[str, str]
    seed: str
    control: str
    status: str
    error: str
    values: Mapping[str, float | None]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """All a report needs. ``notes``: what a reader must know before believing it."""

    folder: Path
    facts: Facts
    answers: Sequence[Answer]
    cells: Sequence[Cell]
    linears: Sequence[Mapping[str, Any]]
    masks: Mapping[str, Any]
    samples: Mapping[str, Mapping[str, Any]]
    manifest: Mapping[str, Any] | None
    text: str
    notes: Sequence[str] = field(default=())

    @cached_property
    def metrics(self) -> list[str]:
        """The primary metric first, then those that any cell has a value of."""
        measured = {name for cell in self.cells for name, value in cell.values.items() if value is not None}
        others = [name for name in self.facts.metrics if name in measured]
        return list(dict.fromkeys([self.facts.metric.name, *others, *sorted(measured)]))

    @property
    def primary(self) -> Answer | None:
        """The comparison that says so; else the first on the primary metric, else the first of all."""
        said = [answer for answer in self.answers if answer.primary]
        on = [answer for answer in self.answers if answer.metric == self.facts.metric.name]
        return next(iter([*said, *on, *self.answers]), None)
