"""Reordering the hidden channels of a block's MLP so that N:M keeps more, where that changes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks.permutation import best_order, chunked
from secateur.methods.base import ScoreMethod
from secateur.methods.ria import RIA
from secateur.models.capture import Activations
from secateur.models.skeleton import Skeleton
from secateur.models.stored import Place, StoredParameters
from secateur.models.structure import Linear, inputs_of
from secateur.pruning.linear import AS_STORED, Layout, method_for
from secateur.pruning.plan import PruningPlan
from secateur.pruning.workers import Workers
from secateur.statistics import InputStatistics

SEED, FEWEST_INPUTS = 0, 16  # with fewer, an order drawn at random may be harmless by chance
TOLERANCE = 1e-4  # of a channel's norm, or 4 roundings: vector and scalar code of an activation differ by less


@dataclass(frozen=True)
class Free:
    """A linear whose inputs can be put in any order if the outputs of ``producers`` are put in it too.

    Producers of k times as many outputs (gate and up in one) have each of the k parts in that order.
    """

    consumer: Linear
    producers: tuple[Linear, ...]


def find_free(
    index: int, block: nn.Module, linears: Sequence[Linear], activations: Activations, workers: Workers
) -> list[Free]:
    """The linears of block ``index`` (loaded, dense) whose inputs may be reordered.

    Candidates by structure: producers stand in the same module as their consumer (an MLP's gate and up, and its down),
    run before it, on another input, and have as many outputs as it has inputs, or a multiple. Whether the outputs reach
    the consumer through elementwise operations alone, and nothing else, is then tried on the first calibration batch:
    with the outputs of all producers in a random order, every consumer must see its former input in that order, and,
    with its former input handed to it, the block must give its former output. What fails is left alone; so is an
    expert that the batch has no tokens for. One of the ``workers`` decides for all.
    Cost: two or three forwards of one batch, whose linears' inputs are held meanwhile.
    """
    by_name = {linear.name: linear for linear in linears}
    found = workers.once(lambda: [_names(one) for one in _tried(index, block, linears, activations)])
    return [Free(by_name[consumer], tuple(map(by_name.__getitem__, producers))) for consumer, producers in found]


def _names(free: Free) -> tuple[str, list[str]]:
    return free.consumer.name, [producer.name for producer in free.producers]


def _tried(index: int, block: nn.Module, linears: Sequence[Linear], activations: Activations) -> list[Free]:
    dense = _Probe(linears, [])
    output = dense.run(index, block, activations)
    free = dense.candidates()
    while free:
        probe = _Probe(linears, free, dense.inputs)
        close = _close(probe.run(index, block, activations), output)
        followed = [one for one in free if one.consumer.name in probe.followed]
        if close:
            return followed
        # A producer's outputs went elsewhere too. If that was one of those left out, the rest is still good; so may be
        # experts that were sent other tokens because of it.
        kept = [one for one in free if one.consumer.name in probe.followed | probe.rerouted]
        kept = kept if len(kept) < len(free) else followed
        free = kept if len(kept) < len(free) else []
    return []


class _Probe:
    """One forward with the outputs of the ``free`` linears' producers in a random order; without, notes what is called."""

    def __init__(
        self, linears: Sequence[Linear], free: Sequence[Free], inputs: Mapping[str, Tensor] | None = None
    ) -> None:
        self.linears = linears
        self.inputs: dict[str, Tensor] = dict(inputs or {})
        self.called: list[Linear] = []
        self.followed: set[str] = set()
        self.rerouted: set[str] = set()
        """Consumers that were called with other tokens than before."""
        self._noting = inputs is None
        self._orders: dict[str, Tensor] = {}
        self._consumed: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(SEED)
        for one in free:
            order = torch.randperm(one.consumer.inputs, generator=generator)
            self._consumed[one.consumer.name] = order
            self._orders |= {producer.name: chunked(order, producer.outputs) for producer in one.producers}

    @torch.inference_mode()
    def run(self, index: int, block: nn.Module, activations: Activations) -> Tensor:
        with self._watching():
            return activations.forward(index, block, 0)

    def candidates(self) -> list[Free]:
        """By structure, from the calls noted. A producer belongs to the first consumer after it that fits."""
        found, taken = [], set[str]()
        once = [linear for linear in self.called if self.called.count(linear) == 1]
        for place, consumer in enumerate(once):
            if consumer.inputs < FEWEST_INPUTS or not self.inputs[consumer.name].numel():
                continue
            producers = tuple(
                linear
                for linear in once[:place]
                if linear.name.rpartition(".")[0] == consumer.name.rpartition(".")[0]
                and linear.outputs % consumer.inputs == 0
                and self.inputs[linear.name] is not self.inputs[consumer.name]
            )
            if producers and not taken & {producer.name for producer in producers}:
                found.append(Free(consumer, producers))
                taken |= {producer.name for producer in producers}
        return found

    @contextmanager
    def _watching(self) -> Iterator[None]:
        handles = [
            linear.module.register_forward_pre_hook(self._before(linear), with_kwargs=True) for linear in self.linears
        ]
        handles += [linear.module.register_forward_hook(self._after(linear)) for linear in self.linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, linear: Linear) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found = inputs_of(args, kwargs)
            if self._noting:
                self.called.append(linear)
                self.inputs[linear.name] = found
                return None
            order = self._consumed.get(linear.name)
            if order is None:
                return None
            former = self.inputs[linear.name]
            if found.shape != former.shape:
                self.rerouted.add(linear.name)
                return None
            if _close(found, former[..., order.to(former.device)]):
                self.followed.add(linear.name)
            return (former,), {}

        return hook

    def _after(self, linear: Linear) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            order = self._orders.get(linear.name)
            return None if order is None else output[..., order.to(output.device)]

        return hook


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether every channel (last dimension) is what it should be, by its own norm: some are far larger than others."""
    if found.shape != expected.shape:
        return False
    found, expected = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (found, expected))
    tolerance = max(TOLERANCE, 4 * torch.finfo(expected.dtype).eps)
    apart = (found.float() - expected.float()).norm(dim=0)
    return bool((apart <= tolerance * expected.float().norm(dim=0)).all())


def layouts(
    skeleton: Skeleton, free: Sequence[Free], plan: PruningPlan, stats: Mapping[str, InputStatistics]
) -> dict[str, Layout]:
    """The order of the ``free`` linears' inputs by linear name, consumers and producers; none where no order is better.

    The order raises the kept sum of the consumer's own scores on its dense weight. Methods that are no score methods have
    none: for them the scores are RIA's, which need the column norms that ``PruningPlan.statistics`` adds. Only consumers
    that the plan prunes are reordered.
    """
    found: dict[str, Layout] = {}
    for one in free:
        name = one.consumer.name
        if name not in plan.sparsities or name not in stats:
            continue
        pattern = plan.pattern.at(plan.sparsities[name])
        method, _ = method_for(one.consumer, plan, stats[name])
        scorer = method if isinstance(method, ScoreMethod) else RIA()
        weight = skeleton.weight(one.consumer).to(skeleton.device, torch.float32)
        with torch.inference_mode():
            order = best_order(scorer.score(weight, stats[name]), pattern).cpu()
        if torch.equal(order, torch.arange(len(order))):
            continue
        moved = {}
        for producer in one.producers:
            moved |= {name: dim for name, _, dim in _parts(producer)}
            rows = chunked(order, producer.outputs)
            found[producer.name] = Layout(rows, found.get(producer.name, AS_STORED).columns)
        found[name] = Layout(found.get(name, AS_STORED).rows, order, moved)
    return found


def move_others(
    skeleton: Skeleton,
    free: Sequence[Free],
    layouts: Mapping[str, Layout],
    plan: PruningPlan,
    output: StoredParameters | None,
    in_place: bool,
) -> None:
    """Reorder what is not pruned: the producers' biases, and the weights of those that stay dense.

    Both in ``output`` (unless ``None``) and, ``in_place``, in the loaded block.
    """
    for one in free:
        for producer in one.producers if one.consumer.name in layouts else ():
            rows = layouts[producer.name].rows
            assert rows is not None
            for _, place, dim in _parts(producer):
                if place is producer.weight and producer.name in plan.sparsities:
                    continue
                tensor = skeleton.stored.read(place).index_select(dim, rows)
                if output is not None:
                    output.write(place, tensor)
                if in_place:
                    held = producer.rows if place is producer.weight else producer.module.get_parameter("bias")
                    held.data.copy_(producer.as_rows(tensor) if place is producer.weight else tensor)


def _parts(linear: Linear) -> Iterator[tuple[str, Place, int]]:
    """The weight and the bias of a linear: name, place, and the dimension that its outputs lie along there."""
    yield f"{linear.name}.weight", linear.weight, 1 if linear.transposed else 0
    if linear.bias is not None:
        yield f"{linear.name}.bias", linear.bias, 0
