"""What a task measures, and how much of a capability pruning left. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

GENERAL, COMMONSENSE, LANGUAGE, MATH, CODE, OTHER = "general", "commonsense", "language", "math", "code", "other"

CAPABILITIES: dict[str, str] = {
    "mmlu": GENERAL,
    "boolq": GENERAL,
    "arc_easy": GENERAL,
    "arc_challenge": GENERAL,
    "rte": GENERAL,
    "sciq": GENERAL,
    "truthfulqa_mc1": GENERAL,
    "truthfulqa_mc2": GENERAL,
    "triviaqa": GENERAL,
    "nq_open": GENERAL,
    "hellaswag": COMMONSENSE,
    "piqa": COMMONSENSE,
    "winogrande": COMMONSENSE,
    "openbookqa": COMMONSENSE,
    "commonsense_qa": COMMONSENSE,
    "social_iqa": COMMONSENSE,
    "copa": COMMONSENSE,
    "blimp": LANGUAGE,
    "lambada_openai": LANGUAGE,
    "lambada_standard": LANGUAGE,
    "gsm8k": MATH,
    "gsm8k_cot": MATH,
    "mathqa": MATH,
    "asdiv": MATH,
    "arithmetic": MATH,
    "minerva_math": MATH,
    "hendrycks_math": MATH,
    "humaneval": CODE,
    "mbpp": CODE,
    "next-line": CODE,
    "parses": CODE,
}
"""Task to capability. Tasks that are not here count as ``other``."""

ACCURACIES = ("acc_norm", "acc", "exact_match")
"""What stands for a task's accuracy, the first that it has."""


def capability_of(task: str) -> str:
    """The capability of a task, or of the known group whose name it begins with (``mmlu_anatomy``)."""
    if task in CAPABILITIES:
        return CAPABILITIES[task]
    return next((found for name, found in CAPABILITIES.items() if task.startswith(f"{name}_")), OTHER)


def accuracy_of(metrics: Mapping[str, Any]) -> float | None:
    """``acc_norm`` if the task has it, else ``acc``, else ``exact_match``; ``None`` for a task without an accuracy."""
    return next((metrics[name] for name in ACCURACIES if metrics.get(name) is not None), None)


def mean_accuracy(tasks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Mean over the tasks that have an accuracy, each task counting the same; ``None`` if none has."""
    found = [value for value in map(accuracy_of, tasks.values()) if value is not None]
    return sum(found) / len(found) if found else None


def retention(
    tasks: Mapping[str, Mapping[str, Any]], dense: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """How much is left, by ``tasks``, ``capabilities`` and ``overall``: ``accuracy``, ``dense``, ``chance``,
    ``share = accuracy / dense`` and ``share_above_chance = (accuracy - chance) / (dense - chance)``.

    Of several tasks the means are taken first. A share is ``None`` where dense has nothing (above chance) to lose.
    """
    rows = {}
    for name, scores in tasks.items():
        here, there = accuracy_of(scores), accuracy_of(dense.get(name, {}))
        if here is not None and there is not None:
            rows[name] = (capability_of(name), here, there, scores.get("chance") or 0.0)
    if not rows:
        return {}
    groups = {kind: [row for row in rows.values() if row[0] == kind] for kind, *_ in rows.values()}
    return {
        "overall": _share(rows.values()),
        "capabilities": {kind: _share(members) for kind, members in sorted(groups.items())},
        "tasks": {name: _share([row]) for name, row in rows.items()},
    }


def _share(rows: Iterable[tuple[str, float, float, float]]) -> dict[str, Any]:
    members = list(rows)
    accuracy = sum(row[1] for row in members) / len(members)
    dense, chance = sum(row[2] for row in members) / len(members), sum(row[3] for row in members) / len(members)
    return {
        "accuracy": accuracy,
        "dense": dense,
        "chance": chance,
        "share": accuracy / dense if dense > 0 else None,
        "share_above_chance": (accuracy - chance) / (dense - chance) if dense > chance else None,
    }
