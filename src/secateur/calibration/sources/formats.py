"""How a row of a data set becomes text: one column, or several put together in a form of our own words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Format(ABC):
    """Frozen dataclasses: their fields are column names, so ``repr`` identifies a format."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""

    @abstractmethod
    def text(self, row: Mapping[str, Any]) -> str | None:
        """The text of a row; ``None`` when its columns do not hold what is expected."""


@dataclass(frozen=True)
class Column(Format):
    """The text of one column."""

    name: str = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def text(self, row: Mapping[str, Any]) -> str | None:
        found = row.get(self.name)
        return found if isinstance(found, str) else None


@dataclass(frozen=True)
class Instruction(Format):
    """A task, what it is about (may be empty), and its answer, under headings."""

    task: str = "instruction"
    given: str = "input"
    answer: str = "output"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.task, self.given, self.answer)

    def text(self, row: Mapping[str, Any]) -> str | None:
        task, given, answer = (row.get(name) for name in self.columns)
        if not (isinstance(task, str) and isinstance(answer, str) and isinstance(given, str | None)):
            return None
        parts = [("Task", task), ("Given", given or ""), ("Answer", answer)]
        return "\n\n".join(f"{heading}:\n{part.strip()}" for heading, part in parts if part.strip())


@dataclass(frozen=True)
class QuestionAnswer(Format):
    """A question and its answer with the way to it."""

    question: str = "question"
    answer: str = "answer"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.question, self.answer)

    def text(self, row: Mapping[str, Any]) -> str | None:
        question, answer = row.get(self.question), row.get(self.answer)
        if not (isinstance(question, str) and isinstance(answer, str)):
            return None
        return f"Question: {question.strip()}\nAnswer: {answer.strip()}"


@dataclass(frozen=True)
class Chat(Format):
    """The messages of a conversation, each after its speaker's role, a blank line between them; no chat template."""

    messages: str = "messages"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.messages,)

    def text(self, row: Mapping[str, Any]) -> str | None:
        found = row.get(self.messages)
        if not isinstance(found, Sequence) or isinstance(found, str) or not found:
            return None
        turns = []
        for message in found:
            role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (0, 0)
            if not (isinstance(role, str) and isinstance(content, str)):
                return None
            turns.append(f"{role.capitalize()}: {content.strip()}")
        return "\n\n".join(turns)


def text_of(row: object, formats: Sequence[Format]) -> str | None:
    """The text of a row by the first of ``formats`` that fits it; ``None`` when none does."""
    if not isinstance(row, Mapping):
        return None
    return next((text for text in (form.text(row) for form in formats) if text is not None), None)


def expected(formats: Sequence[Format]) -> str:
    """What the formats look for, for a message: ``'text'``, or ``'question' with 'answer', or 'text'``."""
    return ", or ".join(" with ".join(map(repr, form.columns)) for form in formats)


def keys_of(row: object, formats: Sequence[Format]) -> str:
    """What a row has instead, for a message."""
    if not isinstance(row, Mapping):
        return type(row).__name__
    for form in formats:
        if set(form.columns) <= row.keys():
            return " and ".join(type(row[name]).__name__ for name in form.columns) + " there"
    return f"the keys {', '.join(map(str, row))}"
