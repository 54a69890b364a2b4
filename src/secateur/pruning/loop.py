"""The sequential loop: each block is pruned by statistics of its inputs after all blocks before it were pruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from secateur.allocation.base import Allocation, LinearSize
from secateur.errors import NumericsError, SecateurError, UsageError
from secateur.masks import Pattern
from secateur.methods.base import Method
from secateur.models.batches import Batch
from secateur.models.capture import Activations, capture, capture_head_inputs
from secateur.models.checkpoint import Checkpoint
from secateur.models.skeleton import Skeleton
from secateur.models.structure import Linear
from secateur.pruning.collect import collect
from secateur.pruning.records import BlockJournal, LinearRecord
from secateur.statistics import InputStatistics

Progress = Callable[[int, int], None]
"""Called with the number of blocks done and their total."""


@dataclass(frozen=True)
class PruningPlan:
    """What to do: the method, the pattern, the sparsity of every linear that is to be pruned (others stay dense)."""

    method: Method
    pattern: Pattern
    sparsities: dict[str, float]
    head: bool = False


def plan_pruning(
    skeleton: Skeleton,
    method: Method,
    pattern: Pattern,
    sparsity: float,
    allocation: Allocation,
    skip: Sequence[str] = (),
    head: bool = False,
) -> PruningPlan:
    """Allocate ``sparsity`` over the linears of all blocks but those whose names match a glob of ``skip``; with
    ``head``, over the output head too.

    Raises ``PatternError`` when an N:M pattern does not fit a linear, ``UsageError`` when a glob matches nothing,
    ``ModelError`` when the head is tied to the embeddings.
    """
    linears = prunable_linears(skeleton, skip) + ([skeleton.head()] if head else [])
    for linear in linears:
        pattern.check_width(linear.inputs, linear.name)
    sizes = [LinearSize(linear.name, linear.block, linear.inputs * linear.outputs) for linear in linears]
    return PruningPlan(method, pattern, allocation.allocate(sizes, sparsity), head)


def prunable_linears(skeleton: Skeleton, skip: Sequence[str] = ()) -> list[Linear]:
    """The linears of all blocks, in order, without those that match a glob of ``skip``."""
    linears = [linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)]
    for glob in skip:
        if not any(fnmatchcase(linear.name, glob) for linear in linears):
            names = ", ".join(linear.name for linear in linears[:3])
            raise UsageError(f"pruning.skip has {glob!r}, which matches no linear; they are named like {names}.")
    kept = [linear for linear in linears if not any(fnmatchcase(linear.name, glob) for glob in skip)]
    if not kept:
        raise UsageError(f"pruning.skip {list(skip)} leaves no linear to prune.")
    return kept


def prune_blocks(
    skeleton: Skeleton,
    plan: PruningPlan,
    batches: Sequence[Batch],
    output: Checkpoint,
    journal: BlockJournal,
    progress: Progress = lambda done, total: None,
) -> list[LinearRecord]:
    """Prune block after block, patching ``output`` (a copy of the model's checkpoint) and noting each in ``journal``.

    ``batches`` is the calibration data; it may be empty when the method needs no statistics. Blocks that the journal
    has are read back from ``output`` and only replayed, so that an interrupted run goes on where it stopped, with the
    same result. Raises ``NumericsError`` for inputs that are not finite.
    """
    count = len(skeleton.blocks)
    missing = [index for index in range(count + plan.head) if index not in journal.blocks]
    if not missing:
        return journal.records()
    needs_data = bool(plan.method.statistics())
    activations = capture(skeleton, batches) if needs_data else Activations([], [], [])
    progress(0, count)
    for index in range(count):
        done, needed_later = index in journal.blocks, needs_data and index < missing[-1]
        if not done or needed_later:
            block = skeleton.load_block(index, output if done else None)
            if not done:
                linears = [linear for linear in skeleton.linears(index) if linear.name in plan.sparsities]
                stats = collect(index, block, linears, activations, plan.method.statistics()) if needs_data else {}
                journal.add(index, [_prune_linear(skeleton, linear, plan, stats, output) for linear in linears])
            if needed_later:
                with torch.inference_mode():
                    activations.advance(index, block)
            skeleton.drop_block(index)
        progress(index + 1, count)
    if plan.head and count not in journal.blocks:
        _prune_head(skeleton, plan, batches, activations, output, journal)
    return journal.records()


def _prune_head(
    skeleton: Skeleton,
    plan: PruningPlan,
    batches: Sequence[Batch],
    activations: Activations,
    output: Checkpoint,
    journal: BlockJournal,
) -> None:
    """Prune the output head by the statistics of what the last block and the final norm hand to it."""
    head = skeleton.head()
    stats = InputStatistics(kind(head.inputs, skeleton.device) for kind in plan.method.statistics())
    if plan.method.statistics():
        for batch, inputs in zip(batches, capture_head_inputs(skeleton, batches, activations), strict=True):
            stats.update(inputs, batch.mask)
    skeleton.load_head()
    journal.add(head.block, [_prune_linear(skeleton, head, plan, {head.name: stats}, output)])


def _prune_linear(
    skeleton: Skeleton, linear: Linear, plan: PruningPlan, stats: dict[str, InputStatistics], output: Checkpoint
) -> LinearRecord:
    """Prune one linear: its stored weight goes to the method in fp32, the result to ``output`` and to the module."""
    started = time.perf_counter()
    key = skeleton.keys[f"{linear.name}.weight"]
    stored = skeleton.checkpoint.read(key)
    weight = linear.as_rows(stored).to(skeleton.device, torch.float32)
    found = stats.get(linear.name, InputStatistics())
    sparsity = plan.sparsities[linear.name]
    try:
        pruned = plan.method.prune(weight, found, plan.pattern, sparsity)
    except SecateurError as error:
        raise type(error)(f"{linear.name} (block {linear.block}): {error}") from error
    result = _checked(linear.as_rows(pruned.weight).to(stored.dtype).contiguous(), linear)
    output.patch({key: result})
    parameter = linear.module.weight
    assert isinstance(parameter, Tensor)
    parameter.data.copy_(result)
    return LinearRecord(
        name=linear.name,
        key=key,
        block=linear.block,
        outputs=linear.outputs,
        inputs=linear.inputs,
        sparsity=sparsity,
        pruned=int((~pruned.mask).sum()),
        zeros=int((result == 0).sum()),
        tokens=found.tokens,
        seconds=time.perf_counter() - started,
        transposed=linear.transposed,
        notes=pruned.notes,
    )


def _checked(weight: Tensor, linear: Linear) -> Tensor:
    if not bool(weight.isfinite().all()):
        raise NumericsError(
            f"Pruning {linear.name} (block {linear.block}) gave weights that are not finite; its stored weights may not "
            "be finite either, or its Gram matrix is too ill-conditioned: raise the damping, or use more calibration data."
        )
    return weight
