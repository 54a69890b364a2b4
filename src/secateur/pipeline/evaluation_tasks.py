"""From the names of tasks in a recipe to tasks that were checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.errors import RecipeError
from secateur.evaluation.task import EvaluationTask
from secateur.evaluation.tasks import GROUPS, TASKS
from secateur.pipeline.recipe import EvaluationSpec
from secateur.registry import Entry, Registry
from secateur.settings import make

_HARNESS = "secateur.evaluation.harness:HarnessTask"


def plan_tasks(spec: EvaluationSpec) -> tuple[EvaluationTask, ...]:
    """The recipe's tasks, groups taken apart. Raises ``UsageError`` for an unknown one, one whose data cannot be had, or
    one that is asked for twice; ``RecipeError`` for settings that it does not have."""
    found: list[EvaluationTask] = []
    for named in spec.tasks:
        found += _tasks(named.name, named.settings, spec.tasks_from)
    names = [task.name for task in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"evaluation.tasks has {', '.join(map(repr, twice))} twice; name each task once.")
    return tuple(found)


def task_names(spec: EvaluationSpec) -> list[str]:
    """The names of the recipe's tasks, groups taken apart; nothing is checked."""
    return [name for named in spec.tasks for name in GROUPS.get(named.name, [named.name])]


def _tasks(name: str, settings: Mapping[str, Any], folder: str | None) -> list[EvaluationTask]:
    if name in GROUPS:
        unknown = set(settings) - {"limit"}
        if unknown:
            raise RecipeError(
                f"The tasks {name!r} have no setting {sorted(unknown)[0]!r}; they have limit. Name a task singly to set more."
            )
        members = GROUPS[name].items()
        return [task for member, shown in members for task in _tasks(member, {"fewshot": shown, **settings}, folder)]
    if name in TASKS.entries():
        return [make(TASKS, name, settings)]
    if {"name", "folder"} & settings.keys():
        raise RecipeError(f"The task {name!r} has the settings fewshot and limit; its folder is evaluation.tasks_from.")
    harness = Registry("task", [Entry(name, _HARNESS, "")])
    task = make(harness, name, {"name": name, "folder": folder, **settings})
    task.check()
    return [task]
