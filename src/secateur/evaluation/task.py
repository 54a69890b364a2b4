"""What a task is: questions put to a model, and what its answers say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.evaluation.confidence import BINS, confidence_of, reliability
from secateur.evaluation.scorer import Scorer


@dataclass(frozen=True)
class TaskScore:
    """A model's answers to ``items`` questions. ``metrics`` by name; ``chance``: the accuracy of guessing. ``answers``: of
    multiple-choice questions, how sure the model was and whether it was right. ``texts``: the questions with their right
    answers. ``facts``: version, number of examples shown, ... ."""

    metrics: dict[str, float]
    items: int
    chance: float = 0.0
    answers: Sequence[tuple[float, bool]] = ()
    texts: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def scores(self, bins: int = BINS) -> dict[str, Any]:
        """As a scores file has it, with ``ece`` and ``reliability`` in ``bins`` bins where there are answers."""
        found: dict[str, Any] = {**self.metrics, "items": self.items, "chance": self.chance, **self.facts}
        if self.answers:
            found |= reliability(
                [sure for sure, _ in self.answers], [right for _, right in self.answers], bins
            ).scores()
        return found


class EvaluationTask(ABC):
    """One task, resolved: ``name`` as the scores call it."""

    name: str

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What decides the scores, for digests."""

    @abstractmethod
    def score(self, scorer: Scorer) -> TaskScore:
        """The model's answers. Raises ``NumericsError`` when its outputs are not finite."""


def accuracy_error(accuracy: float, items: int) -> float:
    """The standard error of an accuracy over ``items`` questions."""
    return (accuracy * (1 - accuracy) / (items - 1)) ** 0.5 if items > 1 else 0.0


def choices_score(
    logprobs: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[int]],
    gold: Sequence[int],
    texts: Sequence[str],
    facts: dict[str, Any],
) -> TaskScore:
    """Multiple choice by likelihood: ``acc`` of the likeliest choice, ``acc_norm`` of the likeliest per character."""
    plain = [max(range(len(row)), key=row.__getitem__) for row in logprobs]
    per_length = [
        max(range(len(row)), key=lambda place, row=row, size=size: row[place] / size[place])
        for row, size in zip(logprobs, lengths, strict=True)
    ]
    items = len(gold)
    acc = sum(one == right for one, right in zip(plain, gold, strict=True)) / items
    norm = sum(one == right for one, right in zip(per_length, gold, strict=True)) / items
    metrics = {"acc": acc, "acc_norm": norm, "acc_stderr": accuracy_error(acc, items)}
    answers = [(confidence_of(row), one == right) for row, one, right in zip(logprobs, plain, gold, strict=True)]
    chance = sum(1 / len(row) for row in logprobs) / items
    return TaskScore(metrics, items, chance, answers, texts, facts)
