"""The library's front door: prune, generate, evaluate take a recipe and return what was made; export_set and import_set
share calibration sets with other tools.

from secateur import Recipe, prune
result = prune(Recipe(model="reference"))
result.folder                      # load it with transformers
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import CalibrationError
from secateur.models.loading import load_tokenizer, pick_device, settled_dtype
from secateur.pipeline.calibrate import CalibrationStage, plan_calibration
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.evaluate import (
    EvaluationStage,
    dense_model_of,
    memory_needed,
    plan_evaluation,
)
from secateur.pipeline.exchange import Exported, plan_export, plan_import
from secateur.pipeline.known import Known
from secateur.pipeline.mixing import Mixture, plan_mixture
from secateur.pipeline.mixing_plan import Search
from secateur.pipeline.profile import plan_profile
from secateur.pipeline.provenance import machine_memory
from secateur.pipeline.prune import PruningStage, refuse_same_place, refuse_unlike
from secateur.pipeline.pruning_run import run_together
from secateur.pipeline.recipe import Part, Recipe
from secateur.pipeline.recommend import Recommendation, plan_recommendation
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DEFAULT_STORE, disk_error, read_manifest
from secateur.pruning.workers import Workers
from secateur.reports.model_card import model_card
from secateur.reports.profile_page import PAGE, profile_page
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


def export_set(
    folder: Path | str, out: Path | str, format: str | None = None, pad: bool = False, model: str | None = None
) -> Exported:
    """Write a finished calibration set to ``out`` for other tools: a folder with a card, or a file named as its format.

    ``format``: hf, parquet, jsonl, jsonl.gz or text (``None``: what ``out`` is named as, else hf). ``pad``: fill all rows
    up to the longest, masked. ``model``: where the tokenizer is, if the set's own model is not where it was.
    """
    return plan_export(Path(folder), Path(out), format, pad, model).run(set_card)


def import_set(
    data: Path | str | Iterable[Mapping[str, Any]],
    model: str,
    out: Path | None = None,
    store: Path = Path(DEFAULT_STORE),
    reporter: Reporter | None = None,
) -> Result:
    """Make a calibration set for ``model``, in ``out`` or in the store, of token ids from elsewhere: a file, a folder, or
    rows with ``input_ids`` and, where there is padding, ``attention_mask``."""
    plan = plan_import(data, model, reporter)
    final = plan.run(out or plan.folder(store))
    _write_card(final, set_card)
    return Result(final, read_manifest(final) or {}, final)


def prune(
    recipe: Recipe, out: Path | None = None, store: Path = Path(DEFAULT_STORE), reporter: Reporter | None = None
) -> Result:
    """Make calibration data if the method needs any, prune, verify, and evaluate; the model is in ``out`` or the store.

    What the store has already is used. What can be checked beforehand is, before anything is run. Launched by torchrun,
    the processes share the calibration samples; only the first writes, evaluates and reports.
    """
    return prune_together([recipe], [out], store, reporter)[0]


def prune_together(
    recipes: Sequence[Recipe],
    outs: Sequence[Path | None] | None = None,
    store: Path = Path(DEFAULT_STORE),
    reporter: Reporter | None = None,
) -> list[Result]:
    """``prune`` for several recipes that share their model and calibration data, in one pass over that data.

    The statistics are taken once, so each further recipe costs its solve. Recipes that need data must ask for
    propagation ``dense``, since only the dense model hands the same inputs to all of them. Raises ``RecipeError`` when
    recipes differ in more than ``pruning`` and ``evaluation``, or when two would make the same folder.
    """
    workers = Workers.start(pick_device(recipes[0].device))
    reporter = Reporter() if workers.rank or reporter is None else reporter
    places = list(outs or [None] * len(recipes))
    plans = [plan_run(recipe, out) for recipe, out in zip(recipes, places, strict=True)]
    refuse_unlike(recipes)
    stages = [plan.pruning for plan in plans]
    refuse_same_place(stages, places)
    calibration = workers.once(lambda: _calibration_for(plans, store, reporter))
    used = [calibration if stage.needs_data else None for stage in stages]
    finals = [out or stage.folder(store, data) for out, stage, data in zip(places, stages, used, strict=True)]
    run_together(stages, finals, used, reporter, workers)
    if workers.rank:
        return [Result(final, {}, data) for final, data in zip(finals, used, strict=True)]
    return [
        _finished(recipe, plan, final, data, store, reporter)
        for recipe, plan, final, data in zip(recipes, plans, finals, used, strict=True)
    ]


def _calibration_for(plans: Sequence[RunPlan], store: Path, reporter: Reporter) -> Path | None:
    """The calibration set that the plans share, made if need be; ``None`` if none needs one."""
    for plan in plans:
        if plan.existing_set is not None:
            return plan.existing_set
        if plan.calibration is not None:
            folder = plan.calibration.run(plan.calibration.folder(store), reporter)
            _write_card(folder, set_card)
            return folder
    return None


def _finished(
    recipe: Recipe, plan: RunPlan, folder: Path, calibration: Path | None, store: Path, reporter: Reporter
) -> Result:
    """Evaluate a pruned model and write its card."""
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


def plan_run(recipe: Recipe, out: Path | None = None, known: Known | None = None) -> RunPlan:
    """Check everything about a run that can be checked without running it. Raises on whatever is wrong. ``known``: what
    earlier plans resolved."""
    known = known or Known()
    known.check(recipe)
    model, stage = known.model(recipe), known.pruning(recipe)
    if out is not None:
        stage.check_place(out)
    if recipe.evaluation.enabled:
        known.evaluation(recipe)
    if not stage.needs_data:
        return RunPlan(model, stage)
    existing = known.existing(recipe)
    if existing:
        return RunPlan(model, stage, None, existing)
    return RunPlan(model, stage, known.calibration(recipe))


def _write_card(folder: Path, make: Callable[[Path], str], again: bool = False, name: str = CARD) -> None:
    """Write README.md (or ``name``) into a finished folder: where there is none, or ``again`` when there is more to say."""
    path = folder / name
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
    load_tokenizer(model.folder)
    dense = resolve_model(against) if against else dense_model_of(model)
    stages = [plan_evaluation(recipe, model, dense)]
    return stages if dense is None else [*stages, plan_evaluation(recipe, dense)]


def profile(
    recipe: Recipe,
    sets: Sequence[Path | str],
    reference: str | None = None,
    out: Path | None = None,
    reporter: Reporter | None = None,
    permutations: int | None = None,
    min_k: float | None = None,
) -> dict[str, Any]:
    """What calibration sets are like, measured before anything is pruned: numbers by set and family, and between sets.

    ``reference``: a source of text, a file or another set to compare with. ``out``: a folder for profile.json and a page
    that shows it. ``permutations``: of MinHash; ``min_k``: the share of tokens that Min-K % looks at.
    """
    found = plan_profile(recipe, sets, reference, permutations, min_k).run(out, reporter or Reporter())
    if out is not None:
        _write_card(out, lambda _: profile_page(found), name=PAGE)
    return found


def find_mixture(
    recipe: Recipe,
    sources: Sequence[str | Part] = (),
    search: Search | None = None,
    store: Path = Path(DEFAULT_STORE),
    reporter: Reporter | None = None,
) -> Mixture:
    """The weights of ``sources`` (empty: of the recipe's mixture) that make the validation loss of what the recipe prunes
    least, from a fit to trials (``PowerLaw``); ``search`` says how many. Trials that the store has are not run again."""
    return plan_mixture(recipe, sources, search).run(store, reporter or Reporter())


def recommend(
    recipe: Recipe,
    sources: Sequence[str] = (),
    reference: str | None = None,
    draws: int = 2,
    store: Path = Path(DEFAULT_STORE),
    reporter: Reporter | None = None,
) -> Recommendation:
    """Candidates for calibration data, ranked by the diagnoses that proved predictive of the pruned model's quality.

    ``sources``: sources by name, ``self``, ``self:STYLE`` or folders of finished sets; ``reference``: text like what the model
    must stay good at; ``draws``: sets of each. How sure the ranking is, and on what evidence, stands in the result.
    """
    return plan_recommendation(recipe, sources, reference, draws).run(store, reporter or Reporter())


def _evaluate_pruned(
    recipe: Recipe, folder: Path, dense: ResolvedModel, store: Path, reporter: Reporter
) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = recipe.evaluation
    if not spec.enabled:
        return {}, {}
    dtype = settled_dtype(spec.dtype, pick_device(recipe.device))
    needed = memory_needed(folder, dtype, 2 if spec.fidelity else 1)
    if needed > 0.8 * machine_memory():
        reporter.note(
            f"Not evaluated: that takes about {needed / 2**30:.0f} GiB in {dtype}, and this machine has "
            f"{machine_memory() / 2**30:.0f}. Run 'secateur evaluate {folder}' elsewhere, or with "
            "--set evaluation.dtype=stored --set evaluation.fidelity=false."
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
