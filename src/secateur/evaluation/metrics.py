"""The names of what an evaluation measures: a scores file as flat numbers, and which direction is better. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secateur.errors import UnknownNameError
from secateur.evaluation.capabilities import mean_accuracy
from secateur.registry import suggestion

LOWER, HIGHER = "lower", "higher"

ALONE = {
    "perplexity": LOWER,
    "loss": LOWER,
    "kl": LOWER,
    "js": LOWER,
    "top1": HIGHER,
    "mean-accuracy": HIGHER,
    "mean-ece": LOWER,
    "retention": HIGHER,
    "retention-above-chance": HIGHER,
}
"""Metrics of the whole evaluation."""

OF_A_TASK = {
    "acc": HIGHER,
    "acc_norm": HIGHER,
    "acc_bytes": HIGHER,
    "exact_match": HIGHER,
    "f1": HIGHER,
    "mcc": HIGHER,
    "bleu": HIGHER,
    "pass@1": HIGHER,
    "ppl": LOWER,
    "word_perplexity": LOWER,
    "byte_perplexity": LOWER,
    "bits_per_byte": LOWER,
    "brier_score": LOWER,
    "ece": LOWER,
    "kl": LOWER,
    "js": LOWER,
    "top1": HIGHER,
}
"""What follows ``TASK/``; ``tasks/`` stands for the text of all tasks."""

OF_GENERATIONS = {"repetition": LOWER, "compression": LOWER, "tokens": None, "ended": None}
"""What follows ``generation/``. Neither length nor how often texts end is better high or low: dense's is right."""

FIDELITY = ("kl", "js", "top1")
SHARES, ACCURACIES, GENERATION, ALL_TASKS = "retention", "accuracy", "generation", "tasks"


def flatten(scores: Mapping[str, Any]) -> dict[str, float]:
    """One evaluation's scores as flat names: ``perplexity``, ``loss``, ``kl``, ``js``, ``top1``; ``TASK/acc``,
    ``TASK/acc_norm``, ``TASK/ppl``, ``TASK/ece``, ``TASK/kl`` ...; ``tasks/kl`` (on all tasks' text); ``mean-accuracy``,
    ``mean-ece``, ``retention``, ``retention-above-chance``, ``retention/CAPABILITY``, ``accuracy/CAPABILITY``; ``generation/...``.

    What was not measured is not there. Values that are no finite numbers are left out too.
    """
    return {name: float(value) for name, value in _flat(scores).items() if _is_number(value)}


def measured(scores: Mapping[str, Any]) -> set[str]:
    """The names that ``flatten`` would have, were every value a finite number: what a broken model was measured by too."""
    return {name for name, value in _flat(scores).items() if value is not None}


def _flat(scores: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "perplexity" in scores:
        value = scores["perplexity"]["value"]
        found |= {"perplexity": value, "loss": math.log(value) if value > 0 else math.nan}
    found |= {name: scores["fidelity"][name] for name in FIDELITY if "fidelity" in scores}
    tasks = scores.get("tasks", {})
    for task, own in tasks.items():
        found |= {f"{task}/{name}": own[name] for name in OF_A_TASK if name in own}
        found |= {f"{task}/{name}": own["fidelity"][name] for name in FIDELITY if "fidelity" in own}
    found |= {f"{ALL_TASKS}/{name}": scores["task_fidelity"][name] for name in FIDELITY if "task_fidelity" in scores}
    found["mean-accuracy"] = mean_accuracy(tasks)
    errors = [own["ece"] for own in tasks.values() if "ece" in own]
    found["mean-ece"] = sum(errors) / len(errors) if errors else None
    found |= _retention(scores.get("retention", {}))
    found |= {f"{GENERATION}/{name}": scores["generation"].get(name) for name in OF_GENERATIONS if GENERATION in scores}
    return found


def _retention(scores: Mapping[str, Any]) -> dict[str, Any]:
    if not scores:
        return {}
    overall = scores["overall"]
    found = {"retention": overall["share"], "retention-above-chance": overall["share_above_chance"]}
    for kind, share in scores["capabilities"].items():
        found |= {f"{SHARES}/{kind}": share["share"], f"{ACCURACIES}/{kind}": share["accuracy"]}
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def better(metric: str) -> str:
    """``lower`` or ``higher``. Raises ``UnknownNameError`` (a ``UsageError``) for a name that no evaluation gives, and
    for a length, of which neither is better."""
    group, _, name = metric.rpartition("/")
    if not group:
        table: Mapping[str, str | None] = ALONE
    elif group == GENERATION:
        table = OF_GENERATIONS
    elif group in (SHARES, ACCURACIES):
        return HIGHER
    else:
        table = OF_A_TASK
    if name not in table:
        known = [*ALONE, *(f"{group or 'TASK'}/{each}" for each in (table if group else OF_A_TASK))]
        raise UnknownNameError(f"There is no metric {metric!r}{suggestion(metric, known)}.")
    found = table[name]
    if found is None:
        raise UnknownNameError(
            f"Of the metric {metric!r} neither less nor more is better: the dense model's value is the right one. Compare "
            f"with another, such as {GENERATION}/repetition."
        )
    return found
