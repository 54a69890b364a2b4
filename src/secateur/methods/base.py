"""What a method is: a pure function from a weight, the statistics of its inputs, a pattern and a sparsity to a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from secateur.masks import Group, Pattern, keep_mask
from secateur.methods.costs import Cost, cost_of
from secateur.statistics import InputStatistics, Statistic


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

    def statistics(self) -> tuple[type[Statistic], ...]:
        """``needs``, and those of a method this one starts from."""
        return self.needs

    def for_linear(self, name: str) -> Method:
        """The method to use for the linear ``name``: this one, unless its settings leave some linears to another."""
        return self

    def cost(self) -> Cost:
        """What a solve takes, for the forecast before a run: the entry of ``methods.costs``, or the method's own."""
        return cost_of(self)

    @abstractmethod
    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        """Prune ``weight`` ``[out, in]`` fp32 (not changed in place) to ``sparsity`` in the given pattern."""


class ScoreMethod(Method):
    """A method that only ranks weights: write ``score``; the base class makes the exact-count mask."""

    group: Group = "row"
    """Which weights compete when the pattern is unstructured."""

    @abstractmethod
    def score(self, weight: Tensor, stats: InputStatistics) -> Tensor:
        """How much each weight matters, ``[out, in]`` fp32; the lowest go."""

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        mask = keep_mask(self.score(weight, stats), pattern, sparsity, self.group)
        return Pruned(mask, weight.masked_fill(~mask, 0))
