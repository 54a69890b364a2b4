"""What a method is: a pure function from a weight, the statistics of its inputs, a pattern and a sparsity to a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from secateur.masks import Group, Pattern, check_group, keep_mask
from secateur.methods.cost import SCORES, UNKNOWN, Cost
from secateur.statistics import InputStatistics, Statistic

PART = 2**18
"""Weights of the rows that a score method prunes at once on a CPU."""


@dataclass(frozen=True)
class Pruned:
    """What a method decided for one linear.

    ``mask`` ``[out, in]`` bool, True = kept. ``weight`` ``[out, in]`` fp32, zero wherever the mask is False.
    ``notes``: numbers worth recording, such as the damping a solve needed.
    """

    mask: Tensor
    weight: Tensor
    notes: dict[str, float] = field(default_factory=dict)


class Method(ABC):
    """Base of all methods. Subclasses are frozen dataclasses: their fields are the settings a recipe can give.

    The first line of a subclass's docstring is its summary.
    """

    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    """The statistics of a linear's inputs that ``prune`` reads. None: no calibration data is needed."""
    own_cost: ClassVar[Cost] = UNKNOWN
    """What ``prune`` takes, for the forecast before a run."""

    def statistics(self) -> tuple[type[Statistic], ...]:
        """``needs``, and those of a method this one starts from."""
        return self.needs

    def for_linear(self, name: str) -> Method:
        """The method to use for the linear ``name``: this one, unless its settings leave some linears to another."""
        return self

    def cost(self) -> Cost:
        """``own_cost``, and that of a method this one starts from."""
        return self.own_cost

    @abstractmethod
    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        """Prune ``weight`` ``[out, in]`` fp32 (not changed in place) to ``sparsity`` in the given pattern."""


class ScoreMethod(Method):
    """A method that only ranks weights: write ``score``; the base class makes the exact-count mask."""

    group: Group = "row"
    """Which weights compete when the pattern is unstructured."""
    own_cost: ClassVar[Cost] = SCORES
    by_row: ClassVar[bool] = False
    """Whether the scores of a row depend on that row alone, so that rows can be pruned a part at a time."""

    def __post_init__(self) -> None:
        check_group(self.group)

    @abstractmethod
    def score(self, weight: Tensor, stats: InputStatistics) -> Tensor:
        """How much each weight matters, ``[out, in]`` fp32; the lowest go."""

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        if not self.by_row or (self.group == "matrix" and not pattern.structured):
            mask = keep_mask(self.score(weight, stats), pattern, sparsity, self.group)
            return Pruned(mask, weight.masked_fill(~mask, 0))
        mask, kept = torch.empty_like(weight, dtype=torch.bool), torch.empty_like(weight)
        zero = weight.new_zeros(())
        for part in _parts(weight):
            mask[part] = keep_mask(self.score(weight[part], stats), pattern, sparsity, self.group)
            torch.where(mask[part], weight[part], zero, out=kept[part])
        return Pruned(mask, kept)


def _parts(weight: Tensor) -> list[slice]:
    """Runs of rows small enough that what is computed of them stays in the processor's cache; one run on a GPU."""
    rows = len(weight) if weight.device.type != "cpu" else max(1, PART // weight.shape[1])
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
