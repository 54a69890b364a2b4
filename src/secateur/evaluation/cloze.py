"""Pick the true next line among distractors: a multiple-choice task made of any text that has lines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.task import TaskScore, choices_score
from secateur.evaluation.text_task import TextTask

SHORTEST = 8
"""Characters of the shortest line that is asked for or offered, white space around it left out."""


@dataclass(frozen=True)
class Item:
    """``choices`` are lines with the line break before them, the ``gold``-th the true one: tokenizers have one token for it and
    the indentation that follows."""

    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class NextLine(TextTask):
    """Which of several lines comes next? By log-likelihood (``acc``), and that per character (``acc_norm``).

    ``items`` places are drawn by ``seed``, at most ``per_text`` from one text; the model sees the ``context_lines`` lines
    before. The ``choices - 1`` distractors are other lines of the same text, given the true line's indentation, so that
    only what they say can tell them apart.
    """

    items: int = 200
    choices: int = 4
    context_lines: int = 20
    per_text: int = 4
    seed: int = 0

    name = "next-line"

    def __post_init__(self) -> None:
        if min(self.items, self.context_lines, self.per_text) < 1 or self.choices < 2:
            raise UsageError(
                "The task 'next-line' needs at least 1 of items, context_lines and per_text, and 2 choices; found "
                f"{self.items}, {self.context_lines}, {self.per_text} and {self.choices}."
            )

    def score(self, scorer: Scorer) -> TaskScore:
        items = scorer.keep(self, lambda: next_lines(self.source().texts(), self))
        pairs = [(scorer.begun(item.context), scorer.encode(choice)) for item in items for choice in item.choices]
        scores = [value for value, _ in scorer.logprobs(pairs)]
        rows = [scores[start : start + self.choices] for start in range(0, len(scores), self.choices)]
        lengths = [[len(choice) for choice in item.choices] for item in items]
        texts = [item.context + item.choices[item.gold] for item in items]
        facts = {"text": self.text, "seed": self.seed, "asked": self.items}
        return choices_score(rows, lengths, [item.gold for item in items], texts, facts)


def next_lines(texts: Any, task: NextLine) -> list[Item]:
    """The items that ``task`` draws from ``(origin, text)`` pairs. Raises ``CalibrationError`` when there is none."""
    draw = random.Random(task.seed)
    documents = [text.splitlines() for _, text in texts]
    draw.shuffle(documents)
    found: list[Item] = []
    for lines in documents:
        places = [place for place in range(1, len(lines)) if len(lines[place].strip()) >= SHORTEST]
        for place in draw.sample(places, min(task.per_text, len(places))):
            item = _item(lines, place, task, draw)
            if item is not None:
                found.append(item)
        if len(found) >= task.items:
            return found[: task.items]
    if not found:
        raise CalibrationError(
            f"The text {task.text!r} has no place for the task 'next-line': texts need lines of at least {SHORTEST} "
            f"characters, and {task.choices - 1} others to choose from. Name another with its setting text."
        )
    return found


def _item(lines: Sequence[str], place: int, task: NextLine, draw: random.Random) -> Item | None:
    truth = lines[place].strip()
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    others = sorted({line.strip() for line in lines if len(line.strip()) >= SHORTEST} - {truth})
    if len(others) < task.choices - 1:
        return None
    choices = [truth, *draw.sample(others, task.choices - 1)]
    draw.shuffle(choices)
    context = "\n".join(lines[max(0, place - task.context_lines) : place])
    return Item(context, tuple(f"\n{indent}{choice}" for choice in choices), choices.index(truth))
