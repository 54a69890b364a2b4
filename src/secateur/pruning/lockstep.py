"""Running a block once: every batch waits at each linear until it is pruned, then goes on with the pruned weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from secateur.errors import NumericsError
from secateur.models.capture import Activations
from secateur.models.structure import Linear, inputs_of
from secateur.pruning.collect import Kinds, check_finite, never_called, new_statistics
from secateur.pruning.workers import Workers
from secateur.statistics import InputStatistics

Prune = Callable[[Linear, InputStatistics], None]
Call = tuple[Linear, Tensor, Tensor | None]


def prune_in_lockstep(
    index: int,
    block: nn.Module,
    linears: Sequence[Linear],
    activations: Activations,
    kinds: Kinds,
    prune: Prune,
    workers: Workers,
    advance: bool,
) -> None:
    """Run block ``index`` over all batches together, calling ``prune`` for each linear when its inputs are known.

    A linear's inputs come from the pruned linears before it, within the block too, and every matrix product is computed
    once. Between two linears each batch holds what its forward still needs. With ``advance`` the block's outputs are
    handed on. Raises ``NumericsError`` when an input is not finite, a linear is never called, or batches call the linears
    in different orders.
    """
    pruned: set[str] = set()
    batches = range(len(activations))
    runs = [greenlet(lambda batch=batch: _run(activations, index, block, batch, advance)) for batch in batches]
    masks = {run: activations.masks[batch] for batch, run in zip(batches, runs, strict=True)}
    going_on = activations.handing_on(index) if advance else nullcontext()
    with _pausing(linears, pruned, masks), torch.inference_mode(), going_on:
        states: list[Call | None] = [run.switch() for run in runs]
        shared: tuple[list[Tensor], InputStatistics] | None = None
        while states[0] is not None:
            linear, calls = _same_linear(states)
            inputs = [tensor for _, tensor, _ in calls]
            if shared is not None and all(one is other for one, other in zip(shared[0], inputs, strict=True)):
                stats = shared[1]
            else:
                stats = new_statistics(linear, kinds, inputs[0].device)
                for _, tensor, mask in calls:
                    stats.update(tensor, mask)
                workers.reduce([stats])
                check_finite(linear, stats)
                shared = (inputs, stats)
            prune(linear, stats)
            pruned.add(linear.name)
            del calls
            for batch, run in enumerate(runs):
                states[batch] = run.switch()
    if not all(run.dead for run in runs):
        raise _out_of_step(index)
    for linear in linears:
        if linear.name not in pruned:
            raise never_called(linear)


def _run(activations: Activations, index: int, block: nn.Module, batch: int, advance: bool) -> None:
    activations.run(index, block, batch, hand_on=advance)


@contextmanager
def _pausing(linears: Sequence[Linear], pruned: set[str], masks: dict[greenlet, Tensor | None]) -> Iterator[None]:
    """Hooks that hand a call over to the loop and wait, unless the linear is pruned already."""

    def hook(linear: Linear) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run = getcurrent()
            if linear.name not in pruned and run.parent is not None:
                run.parent.switch((linear, inputs_of(args, kwargs), linear.rows_of(masks[run])))

        return before

    handles = [linear.module.register_forward_pre_hook(hook(linear), with_kwargs=True) for linear in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same_linear(states: Sequence[Call | None]) -> tuple[Linear, list[Call]]:
    """The linear at which all batches wait."""
    calls = [state for state in states if state is not None]
    first = calls[0][0]
    if len(calls) < len(states) or any(linear.name != first.name for linear, _, _ in calls):
        raise _out_of_step(first.block)
    return first, calls


def _out_of_step(index: int) -> NumericsError:
    return NumericsError(
        f"Block {index} calls its linears in a different order for different calibration batches, so they cannot be pruned "
        "one by one within it. Use pruning.propagation=block."
    )
