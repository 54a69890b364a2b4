"""Collecting the statistics of every linear's inputs while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import NumericsError
from secateur.models.capture import Activations
from secateur.models.structure import Linear, inputs_of
from secateur.pruning.workers import Workers
from secateur.statistics import InputStatistics, Statistic

Kinds = Sequence[type[Statistic]]


class _Stopped(Exception):
    """Raised to end a forward of which no more is needed."""


def collect(
    index: int,
    block: nn.Module,
    linears: Sequence[Linear],
    activations: Activations,
    kinds: Kinds,
    advance: bool,
    workers: Workers | None = None,
) -> dict[str, InputStatistics]:
    """Run block ``index`` over all batches; the statistics of each linear's inputs, of all ``workers``, by linear name.

    Linears that are called with the same tensor (q/k/v, gate/up) share one statistic. With ``advance`` the block's outputs
    are handed on; without, a forward ends where the last linear is about to run. Raises ``NumericsError``
    naming the block and the linear when an input is not finite.
    """
    collector = _Collector(kinds, early_stop=not advance)
    going_on = activations.handing_on(index) if advance else nullcontext()
    with collector.watching(linears), torch.inference_mode(), going_on:
        for batch in range(len(activations)):
            collector.start(activations.masks[batch])
            with suppress(_Stopped):
                activations.run(index, block, batch, hand_on=advance)
    collector.start(None)
    by_linear = collector.by_linear
    if workers is not None:
        # Before the check, so that what one process found not to be finite stops all of them.
        workers.reduce(by_linear[linear.name] for linear in linears if linear.name in by_linear)
    for linear in linears:
        if linear.name in by_linear:
            check_finite(linear, by_linear[linear.name])
        elif linear.experts is None:
            raise never_called(linear)
    return by_linear


def never_called(linear: Linear) -> NumericsError:
    return NumericsError(
        f"Block {linear.block} ran over the calibration data without ever calling {linear.name}, so there are no "
        "statistics to prune it by. Leave it dense with pruning.skip."
    )


def check_finite(linear: Linear, stats: InputStatistics) -> None:
    if not stats.finite():
        raise NumericsError(
            f"The inputs of {linear.name} (block {linear.block}) are not finite over the calibration data: they hold NaN "
            "or infinity. Compute in a wider type (--set dtype=float32), and check the model's weights."
        )


def new_statistics(linear: Linear, kinds: Kinds, device: torch.device) -> InputStatistics:
    return InputStatistics(kind(linear.inputs, device) for kind in kinds)


class _Collector:
    """Forward hooks that feed statistics; a tensor seen twice within a forward is counted once."""

    def __init__(self, kinds: Kinds, early_stop: bool) -> None:
        self.kinds = kinds
        self.by_linear: dict[str, InputStatistics] = {}
        self._early_stop = early_stop
        self._token_mask: Tensor | None = None
        self._seen: list[tuple[Tensor, InputStatistics]] = []
        self._called: list[str] = []
        self._order: list[str] | None = None

    @contextmanager
    def watching(self, linears: Sequence[Linear]) -> Iterator[None]:
        handles = [linear.module.register_forward_pre_hook(self._hook(linear), with_kwargs=True) for linear in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start(self, token_mask: Tensor | None) -> None:
        """Begin a forward. The first one shows the order of calls; the others may stop at its last."""
        if self._called and self._order is None:
            self._order = self._called
        self._token_mask, self._called = token_mask, []
        self._seen.clear()

    def _hook(self, linear: Linear) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._take(linear, inputs_of(args, kwargs))
            self._called.append(linear.name)
            if self._early_stop and self._called == self._order:
                raise _Stopped

        return before

    def _take(self, linear: Linear, inputs: Tensor) -> None:
        for tensor, stats in self._seen:
            if tensor is inputs and self.by_linear.setdefault(linear.name, stats) is stats:
                return
        stats = self.by_linear.get(linear.name)
        if stats is None:
            stats = self.by_linear[linear.name] = new_statistics(linear, self.kinds, inputs.device)
        stats.update(inputs, linear.rows_of(self._token_mask))
        self._seen.append((inputs, stats))
