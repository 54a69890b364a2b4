"""Peak memory and time of a pruning, foretold from the model's structure and this machine's rates."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from secateur.methods.initial import united
from secateur.models.skeleton import Skeleton
from secateur.pruning.plan import Propagation, PruningPlan
from secateur.pruning.rates import Rates, measure
from secateur.pruning.trace import BlockTrace, LinearTrace
from secateur.pruning.workload import Workload, sources, statistic_workspace, statistics_bytes

# Constants of the model, found on small models (benchmarks/forecast.py); those of a method are its own_cost.
HANDLED = 40.0  # bytes moved a weight from stored to fp32, back, and checked
VERIFIED = 30.0  # bytes moved a weight when it is read back
COMPARED = 4.0  # times its own bytes that an untouched tensor moves when it is compared
FAULT = 2**16  # bytes of a mapped file that come with one touched
RETURNED = 32 * 2**20  # smaller tensors of a forward stay with glibc's allocator when they are freed
CALL_SECONDS = 3e-4  # a block's forward beside its work: some fifty operations, each called from Python
START_SECONDS = 0.35  # once a run: the first calls of every kernel, the model run on stand-ins, opening the files
LINEAR_SECONDS = 2e-3  # opening the files, and the record, of one linear
SURVEYED = 20.0  # bytes an allocation moves a weight that it measures


@dataclass(frozen=True)
class Forecast:
    """What a pruning will take. ``memory``: bytes held at the moment of the peak, by what they are; ``time``: seconds, by
    what is done. Copying the model, pruning and verifying it count; making calibration data and evaluating do not. On a
    GPU its memory and the machine's are counted together."""

    memory: dict[str, int] = field(default_factory=dict)
    time: dict[str, float] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """Highest resident memory of the process."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        return sum(self.time.values())

    def sentence(self) -> str:
        seconds = self.seconds
        amount = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f"peak memory about {self.peak_bytes / 2**30:.1f} GiB, {amount} (this machine, measured now)"


def forecast(
    skeleton: Skeleton,
    plan: PruningPlan,
    propagation: Propagation,
    lengths: Sequence[int],
    batch_size: int,
    budget_bytes: int | None,
    place: Path,
    rates: Rates | None = None,
) -> Forecast:
    """Foretell what ``plan`` takes over calibration sequences of ``lengths`` tokens (empty: no data), ``batch_size`` at once,
    with ``budget_bytes`` for hidden states (``None``: no limit), written to ``place``.

    The rates of this machine are measured in about a second unless given; they are those of the moment, so other work
    going on counts. Where a GPU is used, nothing is known of copies between it and the machine.
    """
    setting = Workload(skeleton, plan, propagation, list(lengths), batch_size, budget_bytes)
    if rates is None:
        linears = [linear for block in setting.blocks for linear in block.linears]
        kinds = united(plan.statistics(), plan.allocation.statistics())
        rates = measure(skeleton.device, skeleton.dtype, linears, plan, kinds, place)
    return Forecast(_Memory(setting).parts(), _Time(setting, rates).parts())


def expected_memory(
    skeleton: Skeleton,
    plan: PruningPlan,
    propagation: Propagation,
    lengths: Sequence[int],
    batch_size: int,
    budget_bytes: int | None,
) -> int:
    """Bytes of memory at the peak, as ``forecast`` has them; nothing is measured."""
    setting = Workload(skeleton, plan, propagation, list(lengths), batch_size, budget_bytes)
    return sum(_Memory(setting).parts().values())


def resident_memory() -> int:
    """Bytes of memory this process has now; where the system does not say, the most it ever had."""
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class _Memory:
    """The moments at which memory may peak; the parts of the highest."""

    def __init__(self, setting: Workload) -> None:
        self.setting = setting
        self.base = resident_memory()

    def parts(self) -> dict[str, int]:
        moments = [self._capture(), *self._blocks(), self._verify()]
        highest = max(moments, key=lambda moment: sum(moment.values()))
        return {name: int(size) for name, size in {"process": self.base, **highest}.items() if size}

    def _capture(self) -> dict[str, int]:
        setting = self.setting
        if not (setting.kinds or setting.survey_kinds):
            return {}
        weights = self._outside()
        first = setting.blocks[0]
        return {
            "embeddings": weights,
            "block weights": setting.block_bytes(0),
            "hidden states": setting.hidden,
            "forward": first.peak,
        }

    def _outside(self) -> int:
        """Embeddings and what else is beside the blocks; of a mapped file only what is looked up is in memory."""
        skeleton, total = self.setting.skeleton, 0
        head = skeleton.model.get_output_embeddings()
        left = {id(parameter) for block in skeleton.blocks for parameter in block.parameters()}
        left |= {id(parameter) for parameter in head.parameters()} if head is not None else set()
        embeddings = skeleton.model.get_input_embeddings()
        for parameter in skeleton.model.parameters():
            table = embeddings is not None and parameter is embeddings.weight
            if id(parameter) in left and not table:
                continue
            size = parameter.numel() * self.setting.itemsize
            if table and not self.setting.converts:
                size = min(size, self.setting.all_rows * FAULT)
            total += size
        return total

    def _blocks(self) -> list[dict[str, int]]:
        found, seen = [], set()
        for index, block in enumerate(self.setting.blocks):
            wanted = self.setting.wanted(block)
            shape = (self.setting.block_bytes(index), *((one.outputs, one.inputs, one.source) for one in wanted))
            if shape not in seen:  # most blocks are alike
                seen.add(shape)
                found += self._block(index, block, wanted)
        head = self.setting.head()
        if head is not None:
            found.append({"hidden states": self.setting.hidden, **self._solve([head], head)})
        return found

    def _block(self, index: int, block: BlockTrace, wanted: list[LinearTrace]) -> list[dict[str, int]]:
        setting = self.setting
        always = {"block weights": setting.block_bytes(index), "hidden states": setting.hidden}
        if not setting.kinds and not setting.survey_kinds:
            return [{"block weights": setting.block_bytes(index), **self._solve(wanted, one)} for one in wanted]
        # Hidden states in memory are the blocks' inputs themselves; those on disk are read as they are needed.
        inside = setting.hidden_batch if not setting.spilled else 0
        kinds = setting.kinds or setting.survey_kinds
        taking = max((one.live + statistic_workspace(one, kinds, setting.itemsize) for one in wanted), default=0)
        statistics = statistics_bytes(wanted, kinds)
        forward = {**always, "statistics": statistics, "forward": max(block.peak, taking) - inside}
        lockstep = setting.propagation == "linear"
        freed = block.peak - inside if block.largest < RETURNED and setting.skeleton.device.type == "cpu" else 0
        solving = []
        for one in wanted if setting.kinds else []:
            held = setting.batches * (one.live - inside) if lockstep else 0
            solve = self._solve(wanted, one)
            solving.append({**always, "held between linears": held, "freed by the forward": freed, **solve})
            if lockstep:
                # Every batch's forward goes on in turn; the one that runs needs room to work.
                used = [other for other in wanted if other.source == one.source]
                there = statistics_bytes(used, kinds) + self._kept(used)
                solving.append({**always, "statistics": there, "held between linears": held, "forward": block.peak})
        return [forward, *solving]

    def _kept(self, wanted: list[LinearTrace]) -> int:
        """What follows from the statistics and stays with them."""
        cost = self.setting.plan.method.cost()
        return sum(cost.kept(inputs) for inputs in sources(wanted).values()) if self.setting.kinds else 0

    def _solve(self, wanted: list[LinearTrace], linear: LinearTrace) -> dict[str, int]:
        setting = self.setting
        stored = setting.stored(linear.name)
        copied = 4 * linear.outputs * linear.inputs if setting.skeleton.checkpoint.dtype() != torch.float32 else 0
        cost = setting.plan.method.for_linear(linear.name).cost()
        # Each statistic goes with the last linear that uses it; in lockstep the next comes only then.
        lockstep = setting.propagation == "linear"
        there = [one for one in wanted if one.source == linear.source or (one.source > linear.source and not lockstep)]
        return {
            "statistics": statistics_bytes(there, setting.kinds),
            "solve": stored + copied + cost.workspace(linear.outputs, linear.inputs),
        }

    def _verify(self) -> dict[str, int]:
        """The largest tensor is read from both models."""
        checkpoint = self.setting.skeleton.checkpoint
        largest = max((torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names), default=0)
        return {"verifying": 2 * largest * checkpoint.dtype().itemsize}


class _Time:
    """What is done, and for how long."""

    def __init__(self, setting: Workload, rates: Rates) -> None:
        self.setting, self.rates = setting, rates
        self.cost = setting.plan.method.cost()

    def parts(self) -> dict[str, float]:
        setting, rates, plan = self.setting, self.rates, self.setting.plan
        checkpoint = setting.skeleton.checkpoint
        pruned = [one for block in setting.blocks for one in setting.wanted(block)]
        head = setting.head()
        pruned += [head] if head else []
        weights = sum(one.outputs * one.inputs for one in pruned)
        stored = sum(setting.stored(one.name) for one in pruned)
        loads = sum(setting.block_bytes(index) for index in range(len(setting.blocks)))
        passes = 1 + plan.allocation.measures
        verified = VERIFIED * weights / rates.moving_fp32
        verified += COMPARED * max(0, checkpoint.bytes - stored) / rates.moving_fp32 + checkpoint.bytes / rates.reading
        found = {
            "starting": START_SECONDS + rates.warming,
            "copying": 2 * checkpoint.bytes / rates.reading,
            "loading": passes * loads / rates.reading,
            "forward": sum(self._forward(*entry) for entry in enumerate(setting.blocks)),
            "statistics": sum(self._statistics(block) for block in setting.blocks) if setting.kinds else 0.0,
            "survey": self._survey() if plan.allocation.measures else 0.0,
            "solve": sum(map(self._solve, setting.blocks)) + (self._solved(head) if head else 0.0),
            "hidden states on disk": self._spilled(),
            "saving": (checkpoint.bytes + stored) / rates.writing,
            "verifying": verified,
        }
        return {name: seconds for name, seconds in found.items() if seconds}

    def _forward(self, index: int, block: BlockTrace) -> float:
        setting = self.setting
        wanted = setting.wanted(block)
        if not setting.kinds:
            return 0.0
        whole = self._run(block, None)
        last = index == len(setting.blocks) - 1 and not setting.plan.head
        first = self._run(block, wanted[-1] if wanted else None)
        if setting.propagation == "block":
            return first + (0.0 if last else whole)
        if setting.propagation == "dense":
            return first if last else whole
        return whole

    def _run(self, block: BlockTrace, stop: LinearTrace | None) -> float:
        """All batches through a block, up to where the linear ``stop`` is called."""
        linears = block.linears if stop is None else block.linears[: block.linears.index(stop)]
        seconds = sum(self.rates.linear[one.outputs, one.inputs, one.rows] * one.rows for one in linears)
        seconds += block.flops / self.rates.attention
        seconds += (block.moved if stop is None else stop.moved) / self.rates.moving
        return seconds * self.setting.share_of_batch + CALL_SECONDS * self.setting.batches

    def _statistics(self, block: BlockTrace) -> float:
        sources = {one.source: one for one in self.setting.wanted(block)}
        seconds = sum(self.rates.statistics[one.inputs] * one.rows for one in sources.values())
        return seconds * self.setting.share_of_batch

    def _survey(self) -> float:
        setting, total = self.setting, 0.0
        for block in setting.blocks:
            weights = sum(one.outputs * one.inputs for one in setting.wanted(block))
            total += SURVEYED * weights / self.rates.moving_fp32
            if setting.survey_kinds:
                total += self._run(block, None) + self._statistics(block)
        return total

    def _solve(self, block: BlockTrace) -> float:
        wanted = self.setting.wanted(block)
        shared = sum(self.cost.shared_seconds(inputs, self.rates.products) for inputs in sources(wanted).values())
        return shared * self.rates.shared + sum(map(self._solved, wanted))

    def _solved(self, linear: LinearTrace) -> float:
        rates = self.rates
        cost = self.setting.plan.method.for_linear(linear.name).cost()
        seconds = cost.seconds(linear.outputs, linear.inputs, rates.products, rates.moving_fp32) * rates.solve
        return seconds + HANDLED * linear.outputs * linear.inputs / rates.moving_fp32 + LINEAR_SECONDS

    def _spilled(self) -> float:
        """Each hidden state on disk is read and written once a block, and read once more where it is run twice."""
        once = self.setting.spilled * len(self.setting.blocks)
        reads = 2 if self.setting.propagation == "block" else 1
        return once * (1 + reads) / self.rates.reading
