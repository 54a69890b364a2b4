"""What a comparison is: settings in the study file, a check against the axes, an answer from the table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from secateur.errors import RecipeError
from secateur.registry import suggestion
from secateur.studies.intervals import (
    LEVEL,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Estimate,
    adjustment,
    estimate,
    holm,
)
from secateur.studies.table import Table

Claim = Literal["better", "worse", "different"]


@dataclass(frozen=True)
class Comparison(ABC):
    """``question``: as a sentence, else made up from the settings. ``metric``: another than the study's primary one."""

    question: str = ""
    metric: str = ""
    kind: ClassVar[str] = ""
    default_axis: ClassVar[str] = "axis"

    @abstractmethod
    def check(self, axes: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float] | None]) -> None:
        """Raise ``RecipeError`` when the study has not what is to be compared."""

    @abstractmethod
    def answer(self, table: Table) -> dict[str, Any]:
        """The answer as ``answers.json`` has it, but for kind, question and metric."""

    @abstractmethod
    def asked(self) -> str:
        """The question in words."""

    def axes_used(self) -> list[str]:
        """The axes whose labels are compared."""
        return [value for key in ("axis", "along", "against") if (value := getattr(self, key, ""))]

    def answered(self, table: Table) -> dict[str, Any]:
        return {
            "question": self.question or self.asked(),
            "kind": self.kind,
            "metric": table.metric,
            "level": LEVEL,
            "unit": table.unit,
            **self.answer(table),
        }

    def _known(self, what: str, name: str, known: Iterable[str], of: str = "axis") -> None:
        if not name:
            raise RecipeError(f"The comparison {self.kind} needs {what}; the study has: {', '.join(known)}.")
        if name not in known:
            raise RecipeError(f"The comparison {self.kind}: there is no {of} {name!r}{suggestion(name, known)}.")


def overall(groups: Sequence[Mapping[int, float]]) -> Estimate:
    """Of several groups' values by seed, the estimate of their mean: each seed counts once, and only if all have it.

    A group without any value is left out, and the estimate knows it: what holds elsewhere is not said to hold there.
    """
    there = [group for group in groups if group]
    shared = set.intersection(*map(set, there)) if there else set()
    found = estimate([sum(group[seed] for group in there) / len(there) for seed in sorted(shared)])
    return replace(found, settings=len(there), left_out=len(groups) - len(there))


def judge(
    groups: list[dict[str, Any]],
    estimates: Sequence[Estimate],
    sign: float,
    checks: Sequence[Estimate] | None = None,
) -> str:
    """Give each group its Holm-adjusted p-value and verdict, ``confirmed`` by its check; returns how they were adjusted."""
    adjusted = holm([one.p for one in estimates])
    for group, one, p, check in zip(groups, estimates, adjusted, checks or estimates, strict=True):
        group |= {"p_adjusted": p, "verdict": confirmed(one.verdict(sign, p), sign, check)}
    tests = sum(one.p is not None for one in estimates)
    return adjustment(tests) if tests else "no test"


def confirmed(verdict: str, sign: float, check: Estimate) -> str:
    """``verdict`` if the estimate that it must be confirmed by says the same, else undecided."""
    return verdict if check.verdict(sign) == verdict else UNDECIDED


def counted(groups: Sequence[Mapping[str, Any]]) -> str:
    """How the groups' verdicts fell out, for the end of a sentence; empty for one group."""
    if len(groups) < 2:
        return ""
    verdicts = [group["verdict"] for group in groups]
    parts = [f"{name} in {verdicts.count(name)}" for name in (SUPPORTED, NOT_SUPPORTED, UNDECIDED) if name in verdicts]
    return f" One by one (Holm): {', '.join(parts)} of {len(groups)} settings."


def repeats(found: Estimate) -> str:
    """How many repeats an estimate has, and what it is not of."""
    text = f"{found.n} paired seed" + "s" * (found.n != 1)
    whole = found.settings + found.left_out
    return text + (f" in {found.settings} of {whole} settings; the others lack cells" if found.left_out else "")


def that(verdict: str, claim: str) -> str:
    """A verdict on a claim in words."""
    return f"{verdict} {'whether' if verdict == UNDECIDED else 'that'} {claim}"


def where_said(where: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in where.items())


__all__ = [
    "Claim",
    "Comparison",
    "Estimate",
    "confirmed",
    "counted",
    "judge",
    "overall",
    "repeats",
    "that",
    "where_said",
]
