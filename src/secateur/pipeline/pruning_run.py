"""Running pruning stages: one, or several that share one pass over the calibration data; alone or with other processes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.journal import Journal
from secateur.models.batches import Batch, make_batches
from secateur.models.hidden import PREFIX, HiddenStates
from secateur.pipeline.calibrate import load_set
from secateur.pipeline.provenance import Phases, environment, machine_memory
from secateur.pipeline.prune import PruningStage, check_prompts
from secateur.pipeline.pruning_facts import calibration_facts, left_behind, notes, warnings
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import build
from secateur.pruning.loop import Job, Setting, prune_blocks
from secateur.pruning.plan import PruningPlan
from secateur.pruning.records import BlockJournal, achieved_sparsity
from secateur.pruning.survey import survey
from secateur.pruning.verify import verify
from secateur.pruning.workers import Workers

RECORDS, SURVEY = "pruning.jsonl", "survey.jsonl"  # of the checkpoint's OWN_FILES: never copied from a pruned model
SHARE_OF_MEMORY = 0.25


@dataclass
class _Building:
    """A stage, the ``number``-th of those asked for, whose folder is being filled."""

    number: int
    stage: PruningStage
    folder: Path
    job: Job | None = None


def run_together(
    stages: Sequence[PruningStage],
    finals: Sequence[Path],
    calibrations: Sequence[Path | None],
    reporter: Reporter,
    workers: Workers | None = None,
) -> None:
    """Prune each stage into its final folder, those that are not there yet in one pass over the calibration data.

    Several stages need propagation ``dense``, and the same model and numbers of samples at once. With ``workers`` the
    samples are shared out; only the first process writes. Raises ``VerificationError`` when what was saved does not read
    back as it should.
    """
    run = _Run(calibrations, reporter, workers or Workers())
    if run.workers.rank:
        run.help(stages)
    else:
        run.build(list(enumerate(zip(stages, finals, strict=True))))


class _Run:
    def __init__(self, calibrations: Sequence[Path | None], reporter: Reporter, workers: Workers) -> None:
        self.calibrations = calibrations
        self.reporter = reporter
        self.workers = workers
        self.phases = Phases()
        self.building: list[_Building] = []

    def build(self, waiting: list[tuple[int, tuple[PruningStage, Path]]]) -> None:
        """Open every folder that is to be made, one inside the making of another, then fill them all at once."""
        if not waiting:
            self._fill()
            return
        (number, (stage, final)), *others = waiting
        before = len(self.building)

        def make(folder: Path) -> dict[str, Any]:
            building = _Building(number, stage, folder)
            self.building.append(building)
            self.build(others)
            return self._facts(building)

        build(final, stage.spec(self.calibrations[number]), make)
        if len(self.building) == before:  # it was there already
            self.build(others)

    def _fill(self) -> None:
        told = []
        for building in self.building:
            with self.phases.phase("copy"):
                _copy(building)
            folder = building.folder
            told.append((building.number, folder, _entries(folder / RECORDS), _entries(folder / SURVEY)))
        self.workers.once(lambda: told)
        for building in self.building:
            folder = building.folder
            building.job = self._job(building, Journal(folder / SURVEY), BlockJournal(Journal(folder / RECORDS)), True)
        self._prune()

    def help(self, stages: Sequence[PruningStage]) -> None:
        """What the other processes do: run their samples through the model, prune their share, write nothing."""
        told: list[tuple[int, Path, list[Any], list[Any]]] = self.workers.once(list)
        for number, folder, records, measured in told:
            building = _Building(number, stages[number], folder)
            building.job = self._job(building, Journal(None, measured), BlockJournal(Journal(None, records)), False)
            self.building.append(building)
        if self.building:
            self._prune()

    def _job(self, building: _Building, measured: Journal, journal: BlockJournal, writes: bool) -> Job:
        plan = building.stage.plan
        if plan.allocation.measures:
            with self.phases.phase("survey"):
                plan = self._surveyed(building, measured)
        output = building.stage.skeleton.stored.of_copy(building.folder)
        return Job(plan, output, journal, writes)

    def _surveyed(self, building: _Building, measured: Journal) -> PruningPlan:
        stage, progress = building.stage, self.reporter.advance("blocks surveyed")
        batches = self._batches(building) if stage.plan.allocation.statistics() else []
        with closing(self._hidden(building)) as hidden:
            found = survey(stage.skeleton, stage.plan, batches, measured, hidden, self.workers, progress)
        return stage.plan.allocated(found)

    def _prune(self) -> None:
        if not self.building:
            return
        jobs = [building.job for building in self.building if building.job is not None]
        needing = [building for building in self.building if building.stage.plan.statistics()]
        first = (needing or self.building)[0]
        batches = self._batches(first) if needing else []
        with self.phases.phase("prune"), closing(self._hidden(first)) as hidden:
            setting = Setting(first.stage.recipe.pruning.propagation, hidden, self.workers)
            prune_blocks(first.stage.skeleton, jobs, batches, setting, self.reporter.advance("blocks"))
        self.workers.meet()  # nobody has files in the folder any more when the first process lists what is in it

    def _batches(self, building: _Building) -> Sequence[Batch]:
        calibration = self.calibrations[building.number]
        assert calibration is not None
        spec, samples = building.stage.recipe.pruning, load_set(calibration).samples
        check_prompts(samples, calibration, spec.prompt_weight)
        prompts = [sample.prompt_tokens for sample in samples]
        sequences = [sample.token_ids for sample in samples]
        return self.workers.portion(make_batches(sequences, spec.batch_size, prompts, spec.prompt_weight))

    def _hidden(self, building: _Building) -> HiddenStates:
        return HiddenStates(hidden_budget(building.stage), building.folder)

    def _facts(self, building: _Building) -> dict[str, Any]:
        """Verify what was saved; what the manifest says of it."""
        stage, job = building.stage, building.job
        assert job is not None
        records = job.journal.records()
        with self.phases.phase("verify"):
            verification = verify(stage.skeleton, building.folder, records, stage.pattern, job.plan.sparsities)
        return {
            "kind": "pruned",
            "model": {
                "name": stage.model.name,
                "folder": str(stage.model.folder.resolve()),
                "digest": stage.model.digest,
                "revision": stage.model.revision,
            },
            "recipe": stage.recipe.model_dump(),
            "calibration": calibration_facts(self.calibrations[building.number]),
            "sparsity": achieved_sparsity(records),
            "sparsity_of_all": verification.sparsity_of_all,
            "verification": asdict(verification),
            "weights": sum(record.weights for record in records),
            "pruned_weights": sum(record.pruned for record in records),
            "shared_pass": len(self.building),
            "processes": self.workers.size,
            "left_behind": list(stage.skeleton.checkpoint.left_behind),
            "warnings": notes(stage)
            + warnings(records, stage.method)
            + left_behind(stage.skeleton.checkpoint.left_behind),
            "phases": dict(self.phases.found),
            **environment(),
        }


def hidden_budget(stage: PruningStage) -> int:
    """Bytes of hidden states that stay in memory."""
    asked = stage.recipe.pruning.activation_gib
    return int(machine_memory() * SHARE_OF_MEMORY if asked is None else asked * 2**30)


def _copy(building: _Building) -> None:
    """The copy to patch. The records file is there only once the copy is whole."""
    for left in building.folder.glob(f"{PREFIX}*"):  # of a run that was killed
        shutil.rmtree(left)
    if not (building.folder / RECORDS).exists():
        building.stage.skeleton.stored.copy_to(building.folder)
        (building.folder / RECORDS).touch()


def _entries(path: Path) -> list[Any]:
    return Journal(path).entries
