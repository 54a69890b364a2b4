"""The library's front door: prune, generate, evaluate. Each takes a recipe and returns what was made.

from secateur import Recipe, prune
result = prune(Recipe(model="reference"))
result.folder                      # load it with transformers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import CalibrationError
from secateur.models.loading import load_tokenizer
from secateur.pipeline.calibrate import CalibrationStage, check_set, existing_set, plan_calibration
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.evaluate import (
    EvaluationStage,
    dense_model_of,
    memory_needed,
    memory_of_machine,
    plan_evaluation,
)
from secateur.pipeline.prune import PruningStage, check_request, plan_prune
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DEFAULT_STORE, disk_error, read_manifest
from secateur.reports.model_card import model_card
from secateur.reports.set_card import set_card

CARD = "README.md"


@dataclass(frozen=True)
class Result:
    """What a run made. ``manifest``: that of ``folder``. ``scores``: of the model made or given; ``dense_scores``."""

    folder: Path
    manifest: dict[str, Any]
    calibration: Path | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    dense_scores: dict[str, Any] = field(default_factory=dict)


def generate(
    recipe: Recipe, out: Path | None = None, store: Path = Path(DEFAULT_STORE), reporter: Reporter | None = None
) -> Result:
    """Make the recipe's calibration set, in ``out`` or in the store."""
    reporter = reporter or Reporter()
    stage = plan_calibration(recipe)
    folder = stage.run(out or stage.folder(store), reporter)
    _write_card(folder, set_card)
    return Result(folder, read_manifest(folder) or {}, folder)


def prune(
    recipe: Recipe, out: Path | None = None, store: Path = Path(DEFAULT_STORE), reporter: Reporter | None = None
) -> Result:
    """Make calibration data if the method needs any, prune, verify, and evaluate; the model is in ``out`` or the store.

    What the store has already is used. What can be checked beforehand is, before anything is run.
    """
    reporter = reporter or Reporter()
    plan = plan_run(recipe, out)
    calibration = plan.existing_set
    if plan.calibration is not None:
        calibration = plan.calibration.run(plan.calibration.folder(store), reporter)
        _write_card(calibration, set_card)
    folder = plan.pruning.run(out or plan.pruning.folder(store, calibration), calibration, reporter)
    manifest = read_manifest(folder) or {}
    for warning in manifest.get("warnings", []):
        reporter.note(warning)
    scores, dense_scores = _evaluate_pruned(recipe, folder, plan.model, store, reporter)
    _write_card(folder, lambda place: model_card(read_manifest(place) or {}, scores, dense_scores), bool(scores))
    return Result(folder, manifest, calibration, scores, dense_scores)


@dataclass(frozen=True)
class RunPlan:
    """The stages of a run, resolved and checked. ``calibration``: to be made; ``existing_set``: given as it is."""

    model: ResolvedModel
    pruning: PruningStage
    calibration: CalibrationStage | None = None
    existing_set: Path | None = None


def plan_run(recipe: Recipe, out: Path | None = None) -> RunPlan:
    """Check everything about a run that can be checked without running it. Raises on whatever is wrong."""
    check_request(recipe)
    model = resolve_model(recipe.model, recipe.revision)
    stage = plan_prune(recipe, model)
    if out is not None:
        stage.check_place(out)
    if recipe.evaluation.enabled:
        plan_evaluation(recipe, model)
        load_tokenizer(model.folder)
    if not stage.needs_data:
        return RunPlan(model, stage)
    existing = existing_set(recipe.calibration.source)
    if existing:
        check_set(existing, model)
        return RunPlan(model, stage, None, existing)
    return RunPlan(model, stage, plan_calibration(recipe, model))


def _write_card(folder: Path, make: Callable[[Path], str], again: bool = False) -> None:
    """Write README.md into a finished folder: where there is none, or ``again`` when there is more to say."""
    path = folder / CARD
    if again or not path.exists():
        try:
            path.write_text(make(folder), encoding="utf-8")
        except OSError as error:
            raise disk_error(error, folder) from error


def evaluate(
    recipe: Recipe, against: str | None = None, store: Path = Path(DEFAULT_STORE), reporter: Reporter | None = None
) -> Result:
    """Perplexity of the recipe's model; if it was pruned (or with ``against``), that of the dense model and the
    fidelity to it as well."""
    reporter = reporter or Reporter()
    stages = plan_evaluations(recipe, against)
    scores = [stage.run(stage.folder(store), reporter) for stage in stages]
    folder = stages[0].folder(store)
    return Result(folder, read_manifest(folder) or {}, None, scores[0], scores[1] if len(scores) > 1 else {})


def plan_evaluations(recipe: Recipe, against: str | None = None) -> list[EvaluationStage]:
    """The evaluation of the recipe's model, and that of the dense one it is compared with, if there is one."""
    model = resolve_model(recipe.model, recipe.revision)
    dense = resolve_model(against) if against else dense_model_of(model)
    stages = [plan_evaluation(recipe, model, dense)]
    return stages if dense is None else [*stages, plan_evaluation(recipe, dense)]


def _evaluate_pruned(
    recipe: Recipe, folder: Path, dense: ResolvedModel, store: Path, reporter: Reporter
) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = recipe.evaluation
    if not spec.enabled:
        return {}, {}
    needed = memory_needed(folder, spec.dtype, 2 if spec.fidelity else 1)
    if needed > 0.8 * memory_of_machine():
        reporter.note(
            f"Not evaluated: that takes about {needed / 2**30:.0f} GiB in {spec.dtype}, and this machine has "
            f"{memory_of_machine() / 2**30:.0f}. Run 'secateur evaluate {folder}' elsewhere, or with "
            "--set evaluation.dtype=auto --set evaluation.fidelity=false."
        )
        return {}, {}
    try:
        stage = plan_evaluation(recipe, resolve_model(str(folder)), dense)
        dense_stage = plan_evaluation(recipe, dense)
        return stage.run(stage.folder(store), reporter), dense_stage.run(dense_stage.folder(store), reporter)
    except CalibrationError as error:
        if spec.text is not None:
            raise
        reporter.note(f"Not evaluated: {error} Name a text of your own with --set evaluation.text=FILE.")
        return {}, {}
