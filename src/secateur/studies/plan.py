"""The plan of a study: every cell checked against its model, and the work that they are, each piece once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.api import RunPlan, plan_run
from secateur.errors import RecipeError, SecateurError, UsageError
from secateur.evaluation.metrics import better
from secateur.pipeline.calibrate import digest_of_set
from secateur.pipeline.known import Known
from secateur.pipeline.recipe import Named, Recipe
from secateur.pipeline.store import DIGEST_SHOWN, digest_of
from secateur.studies.cells import Cell, expand
from secateur.studies.comparisons.correlation import Correlation
from secateur.studies.facts import check_fact
from secateur.studies.schema import DENSE
from secateur.studies.study_file import Study

CELL_FORMAT, STUDY_FORMAT = 1, 1
TOGETHER = 16
"""At most so many cells share one pass: each has a copy of the model on disk until it is evaluated."""


@dataclass(frozen=True)
class SetWork:
    """A calibration set to be made, or there already (``folder``). ``needs``: the key of the set it is chosen by."""

    key: str
    recipe: Recipe
    folder: Path | None = None
    needs: str | None = None


@dataclass(frozen=True)
class CellWork:
    """One thing to prune and evaluate; several cells may be the same thing. ``set_key``: of its calibration set, if it
    needs one; ``plan``: as it was checked."""

    digest: str
    spec: dict[str, Any]
    cell: Cell
    set_key: str | None
    plan: RunPlan

    @property
    def name(self) -> str:
        return self.digest[:DIGEST_SHOWN]

    @property
    def dense(self) -> bool:
        return self.cell.control == DENSE

    @property
    def shares(self) -> tuple[Any, ...] | None:
        """What cells must have in common to be pruned in one pass; ``None``: this one is pruned alone."""
        recipe = self.cell.recipe
        if self.dense or self.set_key is None or recipe.pruning.propagation != "dense":
            return None
        spec = recipe.pruning
        return self.plan.model.digest, recipe.device, recipe.dtype, self.set_key, spec.batch_size, spec.prompt_weight


def passes(works: Iterable[CellWork]) -> list[list[CellWork]]:
    """The cells that are pruned in one pass each, the dense model's first."""
    shared: dict[Any, list[CellWork]] = {}
    for work in sorted(works, key=lambda work: not work.dense):
        shared.setdefault(work.shares or work.digest, []).append(work)
    return [group[start : start + TOGETHER] for group in shared.values() for start in range(0, len(group), TOGETHER)]


@dataclass
class StudyPlan:
    """``cells``: each with the digest of what it is; ``works`` and ``sets``: what is to be done, by digest; ``notes``: what
    a reader should know beforehand."""

    study: Study
    known: Known
    cells: list[tuple[Cell, str]] = field(default_factory=list)
    works: dict[str, CellWork] = field(default_factory=dict)
    sets: dict[str, SetWork] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def base(self) -> Recipe:
        """What all cells share, with its defaults."""
        return Recipe.model_validate(self.study.base)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(work.plan.model.name for work in self.works.values()))

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the study's results."""
        spec = self.study.spec
        return {
            "stage": "study",
            "format": STUDY_FORMAT,
            "question": spec.question,
            "axes": {name: list(axis.labels) for name, axis in spec.axes.items()},
            "repeats": spec.repeats,
            "comparisons": spec.declared,
            "metrics": spec.all_metrics,
            "cells": digest_of({"cells": [digest for _, digest in self.cells]}),
        }

    def folder(self, store: Path) -> Path:
        return store / "studies" / f"{self.study.name}-{digest_of(self.spec)[:8]}"

    def correlations(self) -> list[Correlation]:
        return [one for one in self.study.comparisons if isinstance(one, Correlation)]


def plan_study(study: Study) -> StudyPlan:
    """Check every cell as a run of its own would be, before anything runs. Raises on whatever is wrong with any, naming
    the cell."""
    plan = StudyPlan(study, Known())
    for name in study.metrics:
        try:
            better(name)
        except UsageError as error:
            raise RecipeError(f"{study.place('metric')}: {error}") from error
    for cell in expand(study):
        work = _work(plan, cell)
        plan.works.setdefault(work.digest, work)
        plan.cells.append((cell, work.digest))
    for comparison in plan.correlations():
        check_fact(comparison, study.place("comparisons"), plan.base)
    _check_fidelity(plan)
    plan.notes += list(_idle(plan))
    return plan


def _work(plan: StudyPlan, cell: Cell) -> CellWork:
    if not cell.recipe.evaluation.enabled:
        raise RecipeError(f"{plan.study.where}: a study evaluates every cell; take evaluation.enabled out.")
    try:
        run = plan_run(_plannable(cell), known=plan.known)
        evaluation = plan.known.evaluation(cell.recipe)
        shared = {"stage": "cell", "format": CELL_FORMAT, "evaluation": _evaluated(cell.recipe, evaluation.spec)}
        if cell.control == DENSE:
            spec = shared | {"model": run.model.digest}
            return CellWork(digest_of(spec), spec, cell, None, run)
        key = _set(plan, cell, run)
    except SecateurError as error:
        raise type(error)(f"{plan.study.where}, cell {cell.said()}: {error}") from error
    pruning = {name: value for name, value in run.pruning.spec(None).items() if name != "calibration"}
    spec = shared | {"pruning": pruning, "calibration": key}
    return CellWork(digest_of(spec), spec, cell, key, run)


def _evaluated(recipe: Recipe, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the scores of a cell besides its model."""
    return {**spec, "fidelity": recipe.evaluation.fidelity}


def _plannable(cell: Cell) -> Recipe:
    """The recipe with a selection that can be checked before the set that it looks at is there."""
    if cell.needs is None:
        return cell.recipe
    calibration = cell.recipe.calibration.model_copy(update={"selection": Named(name="random")})
    return cell.recipe.model_copy(update={"calibration": calibration})


def _set(plan: StudyPlan, cell: Cell, run: RunPlan) -> str | None:
    """The key of a cell's calibration set, which is among the plan's sets afterwards."""
    if run.existing_set is not None:
        key = digest_of_set(run.existing_set)
        plan.sets.setdefault(key, SetWork(key, cell.recipe, run.existing_set))
        return key
    if run.calibration is None:
        return None
    if cell.needs is None:
        key = digest_of(run.calibration.spec)
        plan.sets.setdefault(key, SetWork(key, cell.recipe))
        return key
    wanted = plan_run(cell.needs, known=plan.known)
    needed = _set(plan, Cell(cell.labels, cell.seed, cell.needs), wanted)
    if needed is None:
        raise UsageError("the set that its samples are to be like would not be made: its method needs no data.")
    selection = cell.recipe.calibration.selection.model_dump() | {"to": needed}
    key = digest_of(run.calibration.spec | {"selection": selection})
    plan.sets.setdefault(key, SetWork(key, cell.recipe, None, needed))
    return key


def _check_fidelity(plan: StudyPlan) -> None:
    """Raise ``UsageError`` when a metric compares with the dense model and no cell does."""
    asked = [name for name in plan.study.metrics if name in {"kl", "js", "top1"}]
    if asked and not any(cell.recipe.evaluation.fidelity for cell, _ in plan.cells):
        raise UsageError(
            f"{plan.study.place('metric')}: no cell produces the metric {asked[0]!r}: evaluation.fidelity is off in all."
        )


def _idle(plan: StudyPlan) -> Iterator[str]:
    """Sentences about labels that make no difference. Raises ``RecipeError`` for an axis that is compared and has none."""
    for axis, spec in plan.study.spec.axes.items():
        groups: dict[Any, dict[str, str]] = {}
        for cell, digest in plan.cells:
            if not cell.control:
                others = tuple(label for name, label in cell.labels.items() if name != axis)
                groups.setdefault((others, cell.seed), {})[cell.labels[axis]] = digest
        labels = list(spec.labels)
        if len(labels) < 2:
            continue
        place = plan.study.place(f"axes.{axis}")
        if not any(len(set(found.values())) > 1 for found in groups.values()):
            sentence = (
                f"{place}: axis {axis!r} changes nothing: all of its labels ({', '.join(labels)}) are the same cell, "
                "whatever the other axes say."
            )
            if any(axis in comparison.axes_used() for comparison in plan.study.comparisons):
                raise RecipeError(f"{sentence} A comparison over it has no answer; correct what its labels set.")
            yield sentence
            continue
        first: dict[tuple[str | None, ...], str] = {}
        for label in labels:
            digests = tuple(found.get(label) for found in groups.values())
            other = first.setdefault(digests, label)
            if other != label:
                yield f"{place}: the labels {other!r} and {label!r} of axis {axis!r} are the same cells; they run once."
