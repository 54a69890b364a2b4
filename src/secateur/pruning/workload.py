"""What a pruning deals with, in numbers: for the forecast."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.models.skeleton import Skeleton
from secateur.pruning.plan import Propagation, PruningPlan
from secateur.pruning.trace import BlockTrace, LinearTrace, trace_blocks
from secateur.statistics import Gram, Statistic


class Workload:
    """What the pruning deals with, in numbers."""

    def __init__(
        self,
        skeleton: Skeleton,
        plan: PruningPlan,
        propagation: Propagation,
        lengths: list[int],
        batch_size: int,
        budget: int | None,
    ) -> None:
        self.skeleton, self.plan, self.propagation = skeleton, plan, propagation
        self.names = {size.name for size in plan.sizes}
        self.kinds = plan.statistics() if lengths else ()
        self.survey_kinds = plan.allocation.statistics() if lengths else ()
        batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
        rows = [len(batch) * max(batch) for batch in batches]
        self.batches, self.all_rows = len(batches), sum(rows)
        largest = max(batches, key=lambda batch: len(batch) * max(batch), default=[16])
        self.blocks = trace_blocks(skeleton, len(largest), max(largest))
        self.batch_rows = len(largest) * max(largest)
        config = skeleton.model.config.get_text_config()
        width = int(getattr(config, "hidden_size", 0) or self.blocks[0].linears[0].inputs)
        self.hidden_batch = self.batch_rows * width * skeleton.dtype.itemsize
        hidden = self.all_rows * width * skeleton.dtype.itemsize
        self.hidden = hidden if budget is None else min(hidden, budget)
        self.spilled = hidden - self.hidden

    @property
    def share_of_batch(self) -> float:
        """All tokens by those of the batch that was traced."""
        return self.all_rows / self.batch_rows

    def wanted(self, block: BlockTrace) -> list[LinearTrace]:
        return [linear for linear in block.linears if linear.name in self.names]

    def stored(self, linear_name: str) -> int:
        """Bytes of a weight in the checkpoint."""
        sizes = {size.name: size.weights for size in self.plan.sizes}
        return sizes[linear_name] * self.skeleton.checkpoint.dtype().itemsize

    def block_bytes(self, index: int) -> int:
        return sum(parameter.numel() for parameter in self.skeleton.blocks[index].parameters()) * self.itemsize

    @property
    def itemsize(self) -> int:
        return self.skeleton.dtype.itemsize

    @property
    def converts(self) -> bool:
        """Whether weights are brought into another type than they are stored in, and so copied."""
        return self.skeleton.checkpoint.dtype() != self.skeleton.dtype

    def head(self) -> LinearTrace | None:
        if not self.plan.head:
            return None
        head = self.skeleton.head()
        return LinearTrace(head.name, head.outputs, head.inputs, self.batch_rows, 0, 0, 0.0)


def sources(linears: Sequence[LinearTrace]) -> dict[int, int]:
    """Widths of the distinct inputs."""
    return {one.source: one.inputs for one in linears}


def statistics_bytes(linears: Sequence[LinearTrace], kinds: Sequence[type[Statistic]]) -> int:
    """Bytes of the statistics of ``linears``, those with one input counted once."""
    return sum(
        sum(held.nbytes for held in kind(inputs, "meta").sums())
        for inputs in sources(linears).values()
        for kind in kinds
    )


def statistic_workspace(linear: LinearTrace, kinds: Sequence[type[Statistic]], itemsize: int) -> int:
    """Bytes in use while a batch of the linear's inputs is taken in: a copy in fp32, and one more for what is squared."""
    copies = (itemsize != 4) + (1 if any(kind is not Gram for kind in kinds) else 0)
    return 4 * copies * linear.rows * linear.inputs
