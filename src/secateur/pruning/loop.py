"""The loop over blocks: statistics of each block's inputs, its linears pruned, its outputs handed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from secateur.errors import UsageError
from secateur.methods.initial import united
from secateur.models.batches import Batch
from secateur.models.capture import Activations, capture
from secateur.models.hidden import HiddenStates
from secateur.models.skeleton import Skeleton
from secateur.models.stored import StoredParameters
from secateur.models.structure import Linear
from secateur.pruning.collect import Kinds, collect, new_statistics
from secateur.pruning.linear import AS_STORED, Layout, PrunedLinear, prune_linear
from secateur.pruning.lockstep import prune_in_lockstep
from secateur.pruning.permute import Free, find_free, layouts, move_others
from secateur.pruning.plan import Propagation, PruningPlan, check_permute
from secateur.pruning.records import BlockJournal, LinearRecord
from secateur.pruning.workers import Workers
from secateur.statistics import InputStatistics

Progress = Callable[[int, int], None]
"""Called with the number of blocks done and their total."""


@dataclass(frozen=True)
class Job:
    """One pruning of the model: its plan, the copy of the checkpoint it patches, and the journal of its blocks.

    Of several worker processes only the first ``writes``.
    """

    plan: PruningPlan
    output: StoredParameters
    journal: BlockJournal
    writes: bool = True

    def done(self, block: int) -> bool:
        return block in self.journal.blocks


@dataclass(frozen=True)
class Setting:
    """How the calibration data runs through the model. ``hidden``: keeps its hidden states."""

    propagation: Propagation = "block"
    hidden: HiddenStates = field(default_factory=HiddenStates)
    workers: Workers = field(default_factory=Workers)


def prune_blocks(
    skeleton: Skeleton,
    jobs: Sequence[Job],
    batches: Sequence[Batch],
    setting: Setting | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Prune block after block, patching each job's output and noting the block in its journal.

    ``batches`` is the calibration data; it may be empty when no method needs statistics. Blocks that a journal has are
    read back from the output and only replayed, so that an interrupted run goes on where it stopped, with the same
    result. Several jobs share the statistics of the dense model (propagation ``dense``), which are taken once. Raises
    ``NumericsError`` for inputs that are not finite, ``UsageError`` for several jobs with another propagation and
    for a plan to ``permute`` with propagation ``linear``.
    """
    run = _Run(skeleton, jobs, setting or Setting())
    if len(jobs) > 1 and run.kinds and run.setting.propagation != "dense":
        raise UsageError(
            "Several prunings share one pass only with pruning.propagation=dense: each would feed the next block other inputs."
        )
    for job in jobs:
        if job.plan.permute:
            check_permute(job.plan.pattern, run.setting.propagation)
    count = len(skeleton.blocks)
    missing = [index for index in range(count + run.head) if not run.done(index)]
    if not missing:
        return
    activations = capture(skeleton, batches if run.kinds else [], run.setting.hidden)
    progress(0, count)
    for index in range(count):
        needed_later = bool(run.kinds) and index < missing[-1]
        if not run.done(index) or needed_later:
            run.block(index, activations, needed_later)
        progress(index + 1, count)
    if not run.done(count):
        run.prune_head(activations)


class _Run:
    """One call of ``prune_blocks``."""

    def __init__(self, skeleton: Skeleton, jobs: Sequence[Job], setting: Setting) -> None:
        self.skeleton = skeleton
        self.jobs = jobs
        self.setting = setting
        self.kinds: Kinds = united(*(job.plan.statistics() for job in jobs))
        self.head = any(job.plan.head for job in jobs)

    def done(self, index: int) -> bool:
        last = index == len(self.skeleton.blocks)
        return all(job.done(index) or (last and not job.plan.head) for job in self.jobs)

    def block(self, index: int, activations: Activations, needed_later: bool) -> None:
        """Prune block ``index`` unless it is done, and replace the hidden states by its outputs if ``needed_later``."""
        dense = self.setting.propagation == "dense"
        pruned_already = self.done(index) and not dense
        output = self.jobs[0].output
        block = self.skeleton.load_block(index, output if pruned_already else None, None if dense else output)
        if not self.done(index):
            linears = [linear for linear in self.skeleton.linears(index) if self._wanted(linear)]
            if not self.kinds:
                self._prune_block(index, linears, {}, in_place=False)
            elif self.setting.propagation == "linear":
                self._prune_in_lockstep(index, block, linears, activations, needed_later)
                needed_later = False
            else:
                advance, workers = dense and needed_later, self.setting.workers
                free = []
                if any(job.plan.permute for job in self.jobs):
                    free = find_free(index, block, self.skeleton.linears(index), activations, workers)
                stats = collect(index, block, linears, activations, self.kinds, advance, workers)
                self._prune_block(index, linears, stats, in_place=not dense, free=free)
                stats.clear()
                needed_later = needed_later and not dense
        if needed_later:
            activations.advance(index, block)
        self.skeleton.drop_block(index)

    def _wanted(self, linear: Linear) -> bool:
        return any(linear.name in job.plan.sparsities for job in self.jobs)

    def _prune_block(
        self,
        index: int,
        linears: Sequence[Linear],
        stats: dict[str, InputStatistics],
        in_place: bool,
        free: Sequence[Free] = (),
    ) -> None:
        for job in self.jobs:
            if job.done(index):
                continue
            mine = [linear for linear in linears if linear.name in job.plan.sparsities]
            orders = {}
            if job.plan.permute:
                orders = self.setting.workers.once(lambda plan=job.plan: layouts(self.skeleton, free, plan, stats))
            # The last job lets go of each statistic once it is used: a wide linear's Gram matrix is the largest thing here.
            take = stats.pop if job is self.jobs[-1] else stats.get
            records = [
                self._prune(job, linear, take(linear.name, None), in_place, number, orders.get(linear.name, AS_STORED))
                for number, linear in enumerate(mine)
            ]
            move_others(self.skeleton, free, orders, job.plan, job.output if job.writes else None, in_place)
            self._note(job, index, records)

    def _prune_in_lockstep(
        self,
        index: int,
        block: nn.Module,
        linears: Sequence[Linear],
        activations: Activations,
        needed_later: bool,
    ) -> None:
        job, records = self.jobs[0], {}

        def prune(linear: Linear, stats: InputStatistics) -> None:
            records[linear.name] = self._prune(job, linear, stats, True, len(records))

        prune_in_lockstep(index, block, linears, activations, self.kinds, prune, self.setting.workers, needed_later)
        self._note(job, index, [records[linear.name] for linear in linears])

    def _prune(
        self,
        job: Job,
        linear: Linear,
        stats: InputStatistics | None,
        in_place: bool,
        number: int,
        layout: Layout = AS_STORED,
    ) -> LinearRecord:
        """Prune one linear for one job; ``in_place`` the block computes with the new weight from now on."""
        workers = self.setting.workers

        def make() -> PrunedLinear:
            made = prune_linear(self.skeleton, linear, job.plan, stats, layout)
            # What another process is handed must not lie on this one's GPU.
            return made if workers.size == 1 else replace(made, weight=made.weight.cpu())

        made = workers.once(make, number)
        if job.writes:
            job.output.write(linear.weight, linear.as_rows(made.weight))
        if in_place:
            linear.rows.data.copy_(made.weight)
        return made.record

    def _note(self, job: Job, index: int, records: list[LinearRecord]) -> None:
        if job.writes:
            job.output.flush()
        job.journal.add(index, records)

    def prune_head(self, activations: Activations) -> None:
        """Prune the output head by the statistics of what the last block and the final norm hand to it."""
        head = self.skeleton.head()
        stats = new_statistics(head, self.kinds, self.skeleton.device)
        if self.kinds:
            for mask, inputs in zip(activations.masks, activations.head_inputs(), strict=True):
                stats.update(inputs, mask)
            self.setting.workers.reduce([stats])
        self.skeleton.load_head()
        for job in self.jobs:
            if job.plan.head and not job.done(head.block):
                self._note(job, head.block, [self._prune(job, head, stats, False, 0)])
