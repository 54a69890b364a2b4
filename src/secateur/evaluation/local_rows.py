"""Rows of local files as the columns that lm-eval's own task definitions read, so that prompts and metrics stay theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Columns:
    """``own``: the columns that lm-eval's definition of a task reads. ``other``: those of the form that local copies often
    have, and how a row of it becomes one of the task's; of ``split_by`` rows are told apart into the tasks of a group."""

    own: tuple[str, ...]
    other: tuple[str, ...] = ()
    convert: Callable[[Row], dict[str, Any]] | None = None
    split_by: str | None = None

    def rows(self, found: Sequence[Row]) -> list[dict[str, Any]] | str:
        """The rows in the task's own columns; a sentence's end that says what is missing when they are in neither form."""
        present = set(found[0]) if found else set()
        if self.convert is not None and present.issuperset(self.other):
            return [self.convert(row) for row in found]
        if present.issuperset(self.own):
            return [dict(row) for row in found]
        forms = " or ".join(", ".join(form) for form in dict.fromkeys((self.own, self.other)) if form)
        return f"has the keys {', '.join(sorted(present)) or '(none)'}, where the task needs {forms}"


def _boolq(row: Row) -> dict[str, Any]:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.removesuffix("?"), "label": int(row["gold"])}


def _winogrande(row: Row) -> dict[str, Any]:
    # The blank stands first, so what lm-eval puts into it are the whole beginnings that the file has.
    one, two = row["context_options"]
    return {"sentence": f"_ {row['continuation']}", "option1": one, "option2": two, "answer": str(int(row["gold"]) + 1)}


def _piqa(row: Row) -> dict[str, Any]:
    one, two = row["choices"]
    return {"goal": row["query"], "sol1": one, "sol2": two, "label": int(row["gold"])}


def _hellaswag(row: Row) -> dict[str, Any]:
    activity, _, context = row["query"].partition(": ")
    first, second = _unfinished(context)
    ends = {"endings": list(row["choices"]), "label": str(row["gold"])}
    return {"activity_label": activity, "ctx_a": first, "ctx_b": second, **ends}


def _unfinished(context: str) -> tuple[str, str]:
    """The whole sentences, and the one that was only begun: lm-eval begins that with a capital."""
    if context.rstrip().endswith((".", "!", "?")):
        return context, ""
    cut = max(context.rfind(mark) + 1 for mark in (". ", "! ", "? "))
    return (context[:cut], context[cut + 1 :]) if cut and context[cut + 1 : cut + 2].islower() else (context, "")


def _arc(row: Row) -> dict[str, Any]:
    labels = list(LETTERS[: len(row["choices"])])
    choices = {"text": list(row["choices"]), "label": labels}
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": choices,
        "answerKey": labels[int(row["gold"])],
    }


def _openbookqa(row: Row) -> dict[str, Any]:
    found = _arc(row)
    return {"question_stem": found.pop("question"), **found}


def _mmlu(row: Row) -> dict[str, Any]:
    return {
        "question": row["query"],
        "choices": list(row["choices"]),
        "answer": int(row["gold"]),
        "subject": row["subject"],
    }


def _lambada(row: Row) -> dict[str, Any]:
    return {"text": f"{row['context']} {row['continuation'].strip(' ')}"}


def _rte(row: Row) -> dict[str, Any]:
    label = row["label"] if isinstance(row["label"], int) else ["entailment", "not_entailment"].index(row["label"])
    return {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "label": label}


CHOICES = ("query", "choices", "gold")

COLUMNS: dict[str, Columns] = {
    "boolq": Columns(("passage", "question", "label"), CHOICES, _boolq),
    "winogrande": Columns(
        ("sentence", "option1", "option2", "answer"), ("context_options", "continuation", "gold"), _winogrande
    ),
    "piqa": Columns(("goal", "sol1", "sol2", "label"), CHOICES, _piqa),
    "hellaswag": Columns(("activity_label", "ctx_a", "ctx_b", "endings", "label"), CHOICES, _hellaswag),
    "arc_easy": Columns(("question", "choices", "answerKey"), CHOICES, _arc),
    "arc_challenge": Columns(("question", "choices", "answerKey"), CHOICES, _arc),
    "openbookqa": Columns(("question_stem", "choices", "answerKey"), CHOICES, _openbookqa),
    "mmlu": Columns(("question", "choices", "answer", "subject"), (*CHOICES, "subject"), _mmlu, "subject"),
    "lambada_openai": Columns(("text",), ("context", "continuation"), _lambada),
    "rte": Columns(("sentence1", "sentence2", "label"), convert=_rte, other=("sentence1", "sentence2", "label")),
    "blimp": Columns(("sentence_good", "sentence_bad", "UID"), split_by="UID"),
}
"""The tasks that can be read from a folder of local files without definitions of their own."""
