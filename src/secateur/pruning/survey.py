"""A pass over the dense model for allocations that measure it before anything is pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from secateur.allocation.base import Measured
from secateur.journal import Journal
from secateur.models.batches import Batch
from secateur.models.capture import capture
from secateur.models.hidden import HiddenStates
from secateur.models.skeleton import Skeleton
from secateur.pruning.collect import collect
from secateur.pruning.plan import PruningPlan
from secateur.pruning.workers import Workers


def survey(
    skeleton: Skeleton,
    plan: PruningPlan,
    batches: Sequence[Batch],
    journal: Journal,
    hidden: HiddenStates,
    workers: Workers,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measured]:
    """What ``plan.allocation`` measures on each dense block, in order; blocks that ``journal`` has are not measured again."""
    found = [entry["measured"] for entry in journal.entries]
    count = len(skeleton.blocks)
    if len(found) == count:
        return found
    allocation, names = plan.allocation, {size.name for size in plan.sizes}
    kinds = allocation.statistics()
    activations = capture(skeleton, batches, hidden) if kinds else None
    for index in range(count):
        block = skeleton.load_block(index)
        linears = [linear for linear in skeleton.linears(index) if linear.name in names]
        if index < len(found):
            if activations is not None:
                activations.advance(index, block)
        else:
            stats = {}
            if activations is not None:
                stats = collect(index, block, linears, activations, kinds, index < count - 1, workers)
            weights = {linear.name: skeleton.weight(linear).to(skeleton.device, torch.float32) for linear in linears}
            with torch.inference_mode():
                found.append(workers.once(lambda weights=weights, stats=stats: allocation.measure(weights, stats)))
            journal.append({"block": index, "measured": found[-1]})
        skeleton.drop_block(index)
        progress(index + 1, count)
    return found
