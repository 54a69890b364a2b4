"""Running a study: tasks in an order that shares what can be shared, outcomes into the folder as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import RecipeError, StoreError
from secateur.evaluation.metrics import measured
from secateur.pipeline.provenance import environment
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DEFAULT_STORE, read_manifest
from secateur.studies.facts import family_of
from secateur.studies.folder import StudyFolder
from secateur.studies.machine import threads_for
from secateur.studies.plan import CellWork, SetWork, StudyPlan, passes
from secateur.studies.pool import InlinePool, Pool, ProcessPool
from secateur.studies.results import write_results
from secateur.studies.tasks import CellTask, Outcome, SetTask, Task, cell_folder, read_cell
from secateur.studies.workers import default_workers, heaviest

BETWEEN_RESULTS = 60.0
"""Seconds between writings of the results while the study runs."""


@dataclass(frozen=True)
class StudyResult:
    """``answers``: as answers.json has them. ``failed``: the sentence of every cell that did not end well, by digest."""

    folder: Path
    answers: list[dict[str, Any]]
    done: int
    failed: dict[str, str]


@dataclass
class _State:
    """What waits, by kind. ``blocked``: cells of a set that could not be made, with its sentence."""

    plan: StudyPlan
    folder: StudyFolder
    store: Path
    reporter: Reporter
    command: str
    waiting: list[CellTask] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    broken: dict[str, str] = field(default_factory=dict)
    full: str = ""
    noted: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)
    environment: dict[str, Any] = field(default_factory=dict)


def run_study(
    plan: StudyPlan,
    out: Path | None = None,
    store: Path = Path(DEFAULT_STORE),
    reporter: Reporter | None = None,
    workers: int | None = None,
    ray: str | None = None,
    command: str = "",
) -> StudyResult:
    """Run what is not done yet, in ``workers`` processes (``None``: as many as cores and memory allow; 0: in this one) or
    on the Ray cluster at ``ray``; write results and answers. The same call goes on after an interruption, and tries what
    failed again."""
    store, reporter = store.absolute(), reporter or Reporter()
    store.mkdir(parents=True, exist_ok=True)
    folder = StudyFolder((out or plan.folder(store)).absolute())
    for note in plan.notes:
        reporter.note(note)
    with folder.opened(plan.spec, plan.study.text, reporter.note):
        state = _State(plan, folder, store, reporter, command)
        _adopt(state)
        _queue(state, workers)
        if state.waiting or state.sets:
            _drive(state, lambda: _pool(state, workers, ray))
        answers = write_results(plan, folder, store, command, state.environment or environment())
        if state.full:
            raise StoreError(
                f"{state.full} {len(folder.cells)} of {len(plan.works)} cells are done and kept; mend that and run the same "
                "command again to go on."
            )
        _check_produced(state, final=True)
        failed = {digest: folder.failed[digest] for digest in plan.works if digest in folder.failed}
        folder.finish(plan.spec, {"done": len(folder.cells), "failed": len(failed), **environment()})
    return StudyResult(folder.path, answers, len(plan.works) - len(failed), failed)


def _pool(state: _State, workers: int | None, ray: str | None) -> Pool:
    tell = state.reporter.note
    if ray is not None:
        from secateur.studies.ray_pool import RayPool

        return RayPool(ray, workers, state.store, tell, needed=0 if workers else heaviest(state.plan))
    if workers == 0:
        return InlinePool(state.store, tell)
    count = workers or default_workers(state.plan, len(state.waiting) + len(state.sets))
    return ProcessPool(count, threads_for(count), state.store, tell)


def _adopt(state: _State) -> None:
    """Take over what another study left in the store."""
    for digest, work in state.plan.works.items():
        if digest not in state.folder.cells and is_cached(state.store, work):
            state.folder.done(digest, read_cell(state.store, digest))


def is_cached(store: Path, work: CellWork) -> bool:
    """Whether the store has the cell."""
    manifest = read_manifest(cell_folder(store, work.digest))
    return manifest is not None and manifest["spec_digest"] == work.digest


def _queue(state: _State, workers: int | None) -> None:
    """The tasks of all cells that are not done, and the sets they need; the dense model first."""
    plan, folder = state.plan, state.folder
    todo = [work for work in plan.works.values() if work.digest not in folder.cells or _to_keep(state, work)]
    state.waiting += [_task(plan, works) for works in passes(todo)]
    wanted = [task_key(plan, task) for task in state.waiting]
    wanted += [key for key in plan.sets if key not in folder.sets]  # their facts and samples are reported
    for key in dict.fromkeys(key for key in wanted if key is not None):
        _want(state, key)


def _to_keep(state: _State, work: CellWork) -> bool:
    """Whether the model of a cell that is done is wanted and was not kept."""
    if work.dense or not state.plan.study.spec.keep:
        return False
    stage, made = work.plan.pruning, state.folder.sets.get(work.set_key or "")
    if stage.needs_data and made is None:
        return True
    return read_manifest(stage.folder(state.store, Path(made["folder"]) if made and stage.needs_data else None)) is None


def _want(state: _State, key: str) -> None:
    """Queue a set, after the one it is chosen by; one made before is made sure of only if its folder is gone."""
    known = state.folder.sets.get(key)
    if key in state.sets or (known is not None and read_manifest(Path(known["folder"])) is not None):
        return
    needs = state.plan.sets[key].needs
    if needs is not None:
        _want(state, needs)
    state.sets.append(key)


def _task(plan: StudyPlan, works: list[CellWork]) -> CellTask:
    cells = tuple((work.digest, work.spec, work.cell.recipe.model_dump()) for work in works)
    return CellTask(cells, works[0].set_key, works[0].dense, plan.study.spec.keep)


def task_key(plan: StudyPlan, task: CellTask) -> str | None:
    """The key of the set that a task's cells share."""
    return plan.works[task.cells[0][0]].set_key


def _drive(state: _State, open_pool: Any) -> None:
    pool: Pool = open_pool()
    running = 0
    try:
        while True:
            while not state.full and pool.room and (task := _next(state)) is not None:
                pool.start(task)
                running += 1
            if not running:
                break
            task, outcome = pool.wait()
            running -= 1
            _settle(state, task, outcome)
    finally:
        pool.close()


def _next(state: _State) -> Task | None:
    """The next task that can begin: cells whose set is there, else a set."""
    made = state.folder.sets
    for number, task in enumerate(state.waiting):
        key = task_key(state.plan, task)
        if key is None or (key in made and key not in state.sets and key not in state.running):
            del state.waiting[number]
            return CellTask(task.cells, made[key]["folder"] if key else None, task.dense, task.keep)
    for key in state.sets:
        work = state.plan.sets[key]
        if work.needs is None or (work.needs in made and work.needs not in state.sets + list(state.running)):
            state.sets.remove(key)
            state.running.add(key)
            return _set_task(state, work)
    return None


def _set_task(state: _State, work: SetWork) -> SetTask:
    asked = ((family_of(one.fact), one.reference) for one in state.plan.correlations())
    measures = tuple(dict.fromkeys((family, reference) for family, reference in asked if family is not None))
    like = state.folder.sets[work.needs]["folder"] if work.needs else None
    return SetTask(work.key, work.recipe.model_dump(), str(work.folder) if work.folder else None, like, measures)


def _settle(state: _State, task: Task, outcome: Outcome) -> None:
    """Note what became of a task; what waits for a set that failed fails with it."""
    folder = state.folder
    now = time.monotonic()
    folder.spend(now - state.noted, outcome.cpu)  # at once: a process that is killed has cost what it has cost
    state.noted = now
    state.environment = outcome.environment or state.environment
    state.full = state.full or (outcome.error if outcome.full else "")
    if isinstance(task, SetTask):
        state.running.discard(task.key)
        if outcome.error:
            _break(state, task.key, outcome.error)
        for key, record in outcome.results.items():
            folder.made(key, record)
    elif outcome.error and len(task.cells) > 1 and not outcome.full:
        state.reporter.note(
            f"{len(task.cells)} cells that shared a pass failed ({outcome.error}); each is tried alone."
        )
        state.waiting[:0] = [CellTask((cell,), task.folder, task.dense, task.keep) for cell in task.cells]
    else:
        for digest, _, _ in task.cells:
            if digest in outcome.results:
                folder.done(digest, outcome.results[digest])
            elif not outcome.full:
                _failed(state, [digest], outcome.error)
    _tell(state)
    _check_produced(state)
    if time.monotonic() - state.written > BETWEEN_RESULTS:
        state.written = time.monotonic()
        write_results(state.plan, folder, state.store, state.command, state.environment)


def _break(state: _State, key: str, error: str) -> None:
    """A set could not be made: neither can the sets chosen by it, nor the cells that need them."""
    state.broken[key] = error
    for other in [one for one in state.sets if state.plan.sets[one].needs == key]:
        state.sets.remove(other)
        _break(state, other, error)
    lost = [task for task in state.waiting if task_key(state.plan, task) == key]
    state.waiting = [task for task in state.waiting if task not in lost]
    if not lost and not state.full:  # its cells are there already; only what is told of the set is not
        state.reporter.note(f"A calibration set could not be looked at, so facts of it are missing: {error}")
    if not state.full:
        _failed(
            state, [cell[0] for task in lost for cell in task.cells], f"Its calibration set could not be made: {error}"
        )


def _failed(state: _State, digests: Iterable[str], error: str) -> None:
    for digest in digests:
        state.folder.fail(digest, error)
        state.reporter.note(f"Failed: {state.plan.works[digest].cell.said()}: {error}")


def _tell(state: _State) -> None:
    works = state.plan.works
    ended = sum(digest in state.folder.cells or digest in state.folder.failed for digest in works)
    waiting = {cell[0] for task in state.waiting for cell in task.cells}
    ended -= sum(digest in state.folder.failed for digest in waiting)
    state.reporter.progress("cells", ended, len(works))


def _check_produced(state: _State, final: bool = False) -> None:
    """Raise ``RecipeError`` as soon as it is sure that no cell produces a metric: every kind of evaluation was done."""
    plan, found, kinds = state.plan, set[str](), set[str]()
    for digest, record in state.folder.cells.items():
        if digest in plan.works and not plan.works[digest].dense:
            found |= set(record["values"]) | measured(record["scores"])
            kinds.add(repr(plan.works[digest].spec["evaluation"]))
    everything = {repr(work.spec["evaluation"]) for work in plan.works.values() if not work.dense}
    if kinds != everything and not (final and kinds):
        return
    for name in plan.study.metrics:
        if name not in found:
            raise RecipeError(
                f"{plan.study.place('metric')}: no cell produces the metric {name!r}; their evaluation gives: "
                f"{', '.join(sorted(found)) or 'nothing'}. Name one of these, or set recipe.evaluation so that it is "
                "measured. The cells that are done are kept in the store."
            )
