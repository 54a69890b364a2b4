"""The library's front door: prune, generate, evaluate. Each takes a recipe and returns what was made.

from secateur import Recipe, prune
result = prune(Recipe(model="reference"))
result.folder                      # load it with transformers
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import CalibrationError
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.evaluate import dense_model_of, memory_needed, memory_of_machine, plan_evaluation
from secateur.pipeline.prune import plan_prune
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DEFAULT_STORE, read_manifest
from secateur.reports.model_card import write_model_card
from secateur.reports.set_card import write_set_card


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
    write_set_card(folder)
    return Result(folder, read_manifest(folder) or {}, folder)


def prune(
    recipe: Recipe, out: Path | None = None, store: Path = Path(DEFAULT_STORE), reporter: Reporter | None = None
) -> Result:
    """Make calibration data if the method needs any, prune, verify, and evaluate; the model is in ``out`` or the store.

    What the store has already is used. Everything that can be checked beforehand is, before anything is run.
    """
    reporter = reporter or Reporter()
    model = resolve_model(recipe.model, recipe.revision)
    stage = plan_prune(recipe, model)
    calibration = None
    if stage.needs_data:
        planned = plan_calibration(recipe, model)
        calibration = planned.run(planned.folder(store), reporter)
        write_set_card(calibration)
    folder = stage.run(out or stage.folder(store, calibration), calibration, reporter)
    manifest = read_manifest(folder) or {}
    for warning in manifest.get("warnings", []):
        reporter.note(warning)
    scores, dense_scores = _evaluate_pruned(recipe, folder, model, store, reporter)
    write_model_card(folder, scores, dense_scores)
    return Result(folder, manifest, calibration, scores, dense_scores)


def evaluate(
    recipe: Recipe, against: str | None = None, store: Path = Path(DEFAULT_STORE), reporter: Reporter | None = None
) -> Result:
    """Perplexity of the recipe's model; if it was pruned (or with ``against``), that of the dense model and the
    fidelity to it as well."""
    reporter = reporter or Reporter()
    model = resolve_model(recipe.model, recipe.revision)
    dense = resolve_model(against) if against else dense_model_of(model)
    stage = plan_evaluation(recipe, model, dense)
    scores = stage.run(stage.folder(store), reporter)
    dense_scores = {}
    if dense is not None:
        dense_stage = plan_evaluation(recipe, dense)
        dense_scores = dense_stage.run(dense_stage.folder(store), reporter)
    return Result(stage.folder(store), read_manifest(stage.folder(store)) or {}, None, scores, dense_scores)


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
