"""What a worker is given, and what it does: make a calibration set, or prune and evaluate cells that share one.

Everything here crosses process and machine borders: plain values in, plain values out.
"""

from __future__ import annotations

import errno
import json
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur import api
from secateur.errors import SecateurError
from secateur.journal import Journal
from secateur.pipeline.components import resolve_model
from secateur.pipeline.profile import diagnose
from secateur.pipeline.provenance import environment
from secateur.pipeline.prune import plan_prune
from secateur.pipeline.pruning_run import RECORDS
from secateur.pipeline.recipe import CalibrationSpec, Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, build, finished, read_manifest, waiting
from secateur.pruning.records import BlockJournal
from secateur.studies.facts import counts_of, shown_samples
from secateur.studies.mask_sample import sample_masks
from secateur.studies.scores import Scored, score

CELL, MODEL = "cell.json", "model"
FACTS = (
    "sparsity",
    "sparsity_of_all",
    "verification",
    "weights",
    "pruned_weights",
    "warnings",
    "calibration",
    "shared_pass",
)


@dataclass(frozen=True)
class SetTask:
    """Make the set of ``recipe`` unless ``folder`` is one. ``like``: the folder of the set its selection looks at.
    ``measures``: families of a profile wanted of it, each with a reference text or ``None``."""

    key: str
    recipe: dict[str, Any]
    folder: str | None = None
    like: str | None = None
    measures: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class CellTask:
    """Prune and evaluate ``cells`` (digest, spec and recipe of each), which share the set in ``folder``; those of
    ``control`` dense are only evaluated. ``keep``: leave the pruned models in the store."""

    cells: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...]
    folder: str | None = None
    dense: bool = False
    keep: bool = False


Task = SetTask | CellTask


@dataclass(frozen=True)
class Outcome:
    """What became of a task: ``results`` by key or digest, or the sentence of its ``error``. ``full``: the disk is.
    ``died``: its process did."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str = ""
    full: bool = False
    died: bool = False
    seconds: float = 0.0
    cpu: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)


class Teller(Reporter):
    """Hands a stage's notes on; progress within a cell is of no interest."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def note(self, text: str) -> None:
        self.tell(text)


def perform(task: Task, store: Path, tell: Callable[[str], None]) -> Outcome:
    """Do ``task``; whatever goes wrong with it is told in the outcome. ``tell`` hears what is being waited for."""
    started, cpu = time.perf_counter(), _cpu()
    results, error, full = {}, "", False
    try:
        with waiting(tell):
            results = _made(task, store, tell) if isinstance(task, SetTask) else _cells(task, store)
    except Exception as problem:
        error, full = sentence(problem), _is_full(problem)
    return Outcome(results, error, full, False, time.perf_counter() - started, _cpu() - cpu, environment())


def sentence(problem: BaseException) -> str:
    """What a failure is, for people."""
    text = " ".join(str(problem).split())[:600]
    if isinstance(problem, SecateurError):
        return text
    if _is_full(problem):
        return f"The disk is full ({text})."
    if isinstance(problem, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return (
            f"There was not enough memory ({text or 'MemoryError'}). Take fewer --workers, a smaller pruning.batch_size, or "
            "set pruning.activation_gib."
        )
    return f"An unexpected {type(problem).__name__}: {text}"


def _is_full(problem: BaseException | None) -> bool:
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        problem = problem.__cause__
    return False


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _made(task: SetTask, store: Path, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    started = time.perf_counter()
    recipe = dict(task.recipe)
    if task.like is not None:
        calibration = recipe["calibration"]
        recipe["calibration"] = calibration | {"selection": calibration["selection"] | {"to": task.like}}
    spec = Recipe.model_validate(recipe)
    folder = Path(task.folder) if task.folder else api.generate(spec, store=store, reporter=Teller(tell)).folder
    manifest = read_manifest(folder) or {}
    facts = counts_of(folder)
    for family, reference in task.measures:
        facts |= diagnose(folder, spec.model, reference, [family])
    found = {
        "folder": str(folder),
        "set_digest": manifest["set_digest"],
        "facts": facts,
        "shown": shown_samples(folder),
        "warnings": manifest.get("warnings", []),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return {task.key: found}


@dataclass
class _Open:
    """A cell whose folder is being filled."""

    digest: str
    recipe: Recipe
    folder: Path
    text: str  # the evaluation text's fingerprint
    record: dict[str, Any] = field(default_factory=dict)


def _cells(task: CellTask, store: Path) -> dict[str, dict[str, Any]]:
    """The records of the cells; each is a folder of the store, so that no other process does it again."""
    cells = sorted(task.cells)  # all processes take locks in this order
    _build(list(cells), [], task, store)
    if task.keep and not task.dense:  # cells found in the store may have been made by a study that kept no models
        recipes = [_prunable(Recipe.model_validate(recipe), task.folder) for _, _, recipe in cells]
        api.prune_together(recipes, None, store)
    return {digest: read_cell(store, digest) for digest, _, _ in cells}


def cell_folder(store: Path, digest: str) -> Path:
    return store / "cells" / digest[:DIGEST_SHOWN]


def read_cell(store: Path, digest: str) -> dict[str, Any]:
    return json.loads((cell_folder(store, digest) / CELL).read_text(encoding="utf-8"))


def _build(waiting_for: list[Any], opened: list[_Open], task: CellTask, store: Path) -> None:
    """Open every folder, one inside the making of another, then fill them all at once."""
    if not waiting_for:
        if opened:
            _fill(opened, task, store)
        return
    (digest, spec, recipe), *others = waiting_for
    before = len(opened)

    def make(folder: Path) -> Mapping[str, Any]:
        mine = _Open(digest, Recipe.model_validate(recipe), folder, spec["evaluation"]["text_fingerprint"])
        opened.append(mine)
        _build(others, opened, task, store)
        (folder / CELL).write_text(json.dumps(mine.record, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        return {"kind": "cell", "cell": digest, **environment()}

    build(cell_folder(store, digest), spec, make)
    if len(opened) == before:  # another process made it
        _build(others, opened, task, store)


def _fill(opened: Sequence[_Open], task: CellTask, store: Path) -> None:
    if task.dense:
        for one in opened:
            model = resolve_model(one.recipe.model, one.recipe.revision)
            one.record |= _scored(score(one.recipe, model, None, store, one.text)) | {
                "set_digest": None,
                "pruned_digest": None,
            }
        return
    recipes = [_prunable(one.recipe, task.folder) for one in opened]
    places = [_place(one, recipe, task, store) for one, recipe in zip(opened, recipes, strict=True)]
    results = api.prune_together(recipes, places, store)
    for one, result in zip(opened, results, strict=True):
        dense = resolve_model(one.recipe.model, one.recipe.revision)
        scored = score(one.recipe, resolve_model(str(result.folder)), dense, store, one.text)
        one.record |= _pruned(result.folder, result.manifest, len(opened)) | _scored(scored)
        one.record["peak_gib"] = max(one.record["peak_gib"], scored.peak_gib)
        one.record["seconds"] = round(one.record["pruning_seconds"] + scored.seconds, 3)


def _prunable(recipe: Recipe, folder: str | None) -> Recipe:
    """The recipe with its finished set, and without evaluation, which comes after."""
    changes: dict[str, Any] = {"evaluation": recipe.evaluation.model_copy(update={"enabled": False}), "seed": 0}
    if folder is not None:
        changes["calibration"] = CalibrationSpec(source=folder)
    return recipe.model_copy(update=changes)


def _place(one: _Open, recipe: Recipe, task: CellTask, store: Path) -> Path:
    """Where the model goes: into the cell's folder for the time being, unless it is kept or there already."""
    stage = plan_prune(recipe, resolve_model(recipe.model, recipe.revision))
    data = Path(task.folder) if task.folder and stage.needs_data else None
    kept = stage.folder(store, data)
    return kept if task.keep or finished(kept, stage.spec(data)) else one.folder / MODEL


def _pruned(folder: Path, manifest: Mapping[str, Any], shared: int) -> dict[str, Any]:
    """What is remembered of a pruned model that will be deleted."""
    records = BlockJournal(Journal(folder / RECORDS)).records()
    phases = manifest["phases"]
    seconds = sum(phase["seconds"] for phase in phases.values()) / max(1, manifest.get("shared_pass", 1))
    return {
        "manifest": {key: manifest[key] for key in FACTS if key in manifest},
        "sparsity": manifest["sparsity"],
        "pruned_digest": manifest["spec_digest"],
        "set_digest": (manifest["calibration"] or {}).get("set_digest"),
        "phases": phases,
        "pruning_seconds": round(seconds, 3),
        "peak_gib": max(phase["peak_mib"] for phase in phases.values()) / 1024,
        "shared_pass": shared,
        "linears": [
            {
                "block": record.block,
                "linear": _kind(record.name, record.block),
                "sparsity": record.zeros / max(1, record.weights),
                "error": record.notes.get("output_error"),
            }
            for record in records
        ],
        "masks": sample_masks(folder, records),
    }


def _kind(name: str, block: int) -> str:
    """The linear's name within its block: what comes after the block's number."""
    return name.partition(f".{block}.")[2] or name


def _scored(scored: Scored) -> dict[str, Any]:
    return {
        "values": scored.values,
        "scores": scored.scores,
        "evaluation_digest": scored.digest,
        "evaluation_seconds": scored.seconds,
        "seconds": scored.seconds,
        "peak_gib": scored.peak_gib,
    }
