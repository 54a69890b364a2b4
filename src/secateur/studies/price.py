"""What a study will take: pruning by the forecast of one cell of each kind, evaluation by its forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.pipeline.calibrate import load_set
from secateur.pipeline.pruning_run import hidden_budget
from secateur.pipeline.store import read_manifest
from secateur.pruning.forecast import Forecast, expected_memory, forecast
from secateur.studies.plan import CellWork, StudyPlan, passes
from secateur.studies.set_price import seconds_for

SHARED = ("loading", "forward", "statistics", "survey", "hidden states on disk")
"""Parts of a forecast that cells of one pass have in common."""
BEFORE = ("starting",)
"""What a worker does once, not for every cell."""


@dataclass(frozen=True)
class Price:
    """``seconds``: of one process, for what is to run, pruning and evaluation, what cells of one pass share counted once.
    ``peak_bytes``: of the heaviest cell, and so of each worker. ``sets``: what making calibration sets adds, in words;
    ``cells``: how many are to run."""

    seconds: float
    peak_bytes: int
    sets: str
    cells: int

    def sentence(self) -> str:
        if not self.cells:
            return "nothing but what the store has already"
        return (
            f"about {_amount(self.seconds)} of one process, {self.peak_bytes / 2**30:.1f} GiB each (this machine, measured now)"
            + (f"; {self.sets} comes on top" if self.sets else "")
        )


def price(plan: StudyPlan, todo: list[str], store: Path) -> Price:
    """The price of the cells ``todo``, by digest. One cell of each kind is forecast, a second or two each."""
    works = [plan.works[digest] for digest in todo]
    kinds = priced_alike(plan, works)
    forecasts = {key: _forecast(work, store) for key, work in kinds.items()}
    seconds = sum(pass_seconds([forecasts[_key(work)] for work in group if not work.dense]) for group in passes(works))
    speeds = [speed for key, found in forecasts.items() if (speed := _speed(kinds[key], found)) is not None]
    if speeds:
        seconds += sum(_scored_tokens(plan, work) for work in works) * min(speeds)
    peak = max((found.peak_bytes for found in forecasts.values()), default=0)
    return Price(seconds, peak, _of_sets(works, store), len(todo))


def pass_seconds(cells: list[Forecast]) -> float:
    """Cells of one pass: what they share, as long as the longest takes; then what each has for itself."""
    shared = max((sum(found.time.get(part, 0.0) for part in SHARED) for found in cells), default=0.0)
    own = sum(seconds for found in cells for part, seconds in found.time.items() if part not in (*SHARED, *BEFORE))
    return shared + own


def _of_sets(works: list[CellWork], store: Path) -> str:
    """The sets that are to be made, and how long that takes where sets of the store tell."""
    specs = {
        work.set_key: work.plan.calibration.spec for work in works if work.plan.calibration and _unmade(work, store)
    }
    if not specs:
        return ""
    seconds, unknown = seconds_for(list(specs.values()), store)
    known = (
        f" (about {_amount(seconds)} going by sets of the store{f', {unknown} of them not known' if unknown else ''})"
    )
    return f"making {len(specs)} calibration set{'s' if len(specs) > 1 else ''}" + (known if seconds else "")


def _amount(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _unmade(work: CellWork, store: Path) -> bool:
    """Whether the store lacks a cell's set; one chosen by another set is taken to be lacking."""
    stage = work.plan.calibration
    return stage is not None and (work.cell.needs is not None or read_manifest(stage.folder(store)) is None)


def priced_alike(plan: StudyPlan, works: list[CellWork] | None = None) -> dict[str, CellWork]:
    """One work of each kind that costs differently: sparsity, seeds and sources make no difference."""
    found: dict[str, CellWork] = {}
    for work in plan.works.values() if works is None else works:
        if not work.dense:
            found.setdefault(_key(work), work)
    return found


def peak_bytes(work: CellWork) -> int:
    """Memory that pruning is expected to take at most."""
    stage, spec = work.plan.pruning, work.cell.recipe.pruning
    budget = hidden_budget(stage)
    return expected_memory(stage.skeleton, stage.plan, spec.propagation, _lengths(work), spec.batch_size, budget)


def _key(work: CellWork) -> str:
    pruning = work.cell.recipe.pruning.model_dump(exclude={"sparsity", "pattern"})
    return repr((work.plan.model.digest, pruning, _lengths(work)))


def _lengths(work: CellWork) -> list[int]:
    if work.plan.calibration is not None:
        spec = work.plan.calibration.spec
        return [spec["length"]] * spec["samples"]
    if work.plan.existing_set is not None:
        return [len(sample.token_ids) for sample in load_set(work.plan.existing_set).samples]
    return []


def _forecast(work: CellWork, store: Path) -> Forecast:
    stage, spec = work.plan.pruning, work.cell.recipe.pruning
    lengths, budget = _lengths(work), hidden_budget(stage)
    return forecast(stage.skeleton, stage.plan, spec.propagation, lengths, spec.batch_size, budget, store)


def _speed(work: CellWork, found: Forecast) -> float | None:
    """Seconds that a token takes through the model's blocks once; ``None`` where no forward was forecast."""
    tokens = sum(_lengths(work)) * (2 if work.cell.recipe.pruning.propagation == "block" else 1)
    return found.time["forward"] / tokens if tokens and "forward" in found.time else None


def _scored_tokens(plan: StudyPlan, work: CellWork) -> int:
    """Tokens that an evaluation runs through the model, where its limit says so; else 0."""
    spec: Any = plan.known.evaluation(work.cell.recipe)
    return (spec.limit or 0) * (spec.protocol.window or 0)
