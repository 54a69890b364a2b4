"""The scores of one model of a study, by the evaluation stage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from secateur.calibration.sources.base import ReadOnce, TextSource
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.errors import CalibrationError
from secateur.evaluation.metrics import flatten
from secateur.pipeline.components import ResolvedModel
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.evaluator import Evaluator
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import digest_of, read_manifest
from secateur.studies.machine import cores, free_memory


@dataclass(frozen=True)
class Scored:
    """``values``: by flat name; ``scores``: as the evaluation has them; ``digest``: of its spec."""

    values: dict[str, float]
    scores: dict[str, Any]
    digest: str
    seconds: float
    peak_gib: float


def score(recipe: Recipe, model: ResolvedModel, dense: ResolvedModel | None, store: Path, text: str) -> Scored:
    """Evaluate ``model``; with ``dense``, also against that. ``text``: the fingerprint that the evaluation text had when the
    study was planned. Raises ``CalibrationError`` when it has another by now."""
    started = time.perf_counter()
    stage = plan_evaluation(recipe, model, dense, partial(_text_source, text))
    folder = stage.folder(store)
    scores = stage.run(folder, Reporter(), _evaluator())
    phases = (read_manifest(folder) or {}).get("phases", {})
    peak = max((phase["peak_mib"] for phase in phases.values()), default=0.0) / 1024
    return Scored(flatten(scores), scores, digest_of(stage.spec), round(time.perf_counter() - started, 3), peak)


@lru_cache(maxsize=4)
def _text_source(fingerprint: str, name: str, key: str, split: str) -> TextSource:
    """Read once a process and version: to look through a text again for every cell costs as much as to prune it."""
    found = ReadOnce(resolve_text_source(name, key, split))
    if found.fingerprint() != fingerprint:
        raise CalibrationError(
            f"The evaluation text {name!r} has changed since the study began, so its cells would not be alike. Put it back, "
            "or run the same command again to measure all of them on the new one."
        )
    return found


@lru_cache(maxsize=1)
def _evaluator() -> Evaluator:
    """One a process: it keeps the dense model and, of its logits, what takes this worker's share of a quarter of the memory."""
    return Evaluator(free_memory() // (4 * cores()))
