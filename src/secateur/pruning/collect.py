"""Collecting the statistics of every linear's inputs while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import NumericsError
from secateur.models.capture import Activations
from secateur.models.structure import Linear
from secateur.statistics import InputStatistics, Statistic


def collect(
    index: int,
    block: nn.Module,
    linears: Sequence[Linear],
    activations: Activations,
    kinds: Sequence[type[Statistic]],
) -> dict[str, InputStatistics]:
    """Run block ``index`` over all batches; the statistics of each linear's inputs, by linear name.

    Linears that are called with the same tensor (q/k/v, gate/up) share one statistic. Raises ``NumericsError`` naming
    the block and the linear when an input is not finite.
    """
    collector = _Collector(kinds)
    with collector.watching(linears), torch.inference_mode():
        for batch in range(len(activations.hidden)):
            collector.token_mask = activations.masks[batch]
            activations.forward(index, block, batch)
            collector.forget_inputs()
    for linear in linears:
        stats = collector.by_linear.get(linear.name)
        if stats is None:
            raise NumericsError(
                f"Block {index} ran over the calibration data without ever calling {linear.name}, so there are no "
                "statistics to prune it by. Leave it dense with pruning.skip."
            )
        if not stats.finite():
            raise NumericsError(
                f"The inputs of {linear.name} (block {index}) are not finite over the calibration data: they hold NaN "
                "or infinity. Compute in a wider type (--set dtype=float32), and check the model's weights."
            )
    return collector.by_linear


class _Collector:
    """Forward hooks that feed statistics; a tensor seen twice within a forward is counted once."""

    def __init__(self, kinds: Sequence[type[Statistic]]) -> None:
        self.kinds = kinds
        self.by_linear: dict[str, InputStatistics] = {}
        self.token_mask: Tensor | None = None
        self._seen: list[tuple[Tensor, InputStatistics]] = []

    @contextmanager
    def watching(self, linears: Sequence[Linear]) -> Iterator[None]:
        handles = [linear.module.register_forward_pre_hook(self._hook(linear), with_kwargs=True) for linear in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget_inputs(self) -> None:
        self._seen.clear()

    def _hook(self, linear: Linear) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else kwargs["input"]
            for tensor, stats in self._seen:
                if tensor is inputs and self.by_linear.setdefault(linear.name, stats) is stats:
                    return
            stats = self.by_linear.get(linear.name)
            if stats is None:
                stats = InputStatistics(kind(linear.inputs, inputs.device) for kind in self.kinds)
                self.by_linear[linear.name] = stats
            stats.update(inputs, self.token_mask)
            self._seen.append((inputs, stats))

        return before
