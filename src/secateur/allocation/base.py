"""What an allocation is, and the check that it meets its target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from secateur.errors import UsageError
from secateur.masks.pattern import UNSTRUCTURED, Pattern
from secateur.statistics import InputStatistics, Statistic

Measured = Mapping[str, Any]
"""What ``Allocation.measure`` found for one block: numbers and lists of numbers, by name."""


@dataclass(frozen=True)
class LinearSize:
    """A linear an allocation deals with: its name, the index of its block, its number of weights."""

    name: str
    block: int
    weights: int


class Allocation(ABC):
    """Sparsity per linear. Subclasses are frozen dataclasses: their fields are the settings a recipe can give."""

    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    """Statistics of the dense model's inputs that ``measure`` reads."""
    measures: ClassVar[bool] = False
    """Whether ``measure`` is to be called with every block of the dense model before ``sparsities``."""

    def statistics(self) -> tuple[type[Statistic], ...]:
        """``needs``, and those of a method whose scores this allocation uses."""
        return self.needs

    def measure(self, weights: Mapping[str, Tensor], stats: Mapping[str, InputStatistics]) -> Measured:
        """Measure one dense block: ``weights`` ``[out, in]`` fp32 and the statistics of their inputs, by linear name."""
        return {}

    @abstractmethod
    def sparsities(
        self, linears: Sequence[LinearSize], target: float, measured: Sequence[Measured], pattern: Pattern
    ) -> Mapping[str, float]:
        """Sparsity of every linear, by name. Its mean weighted by ``weights`` must equal ``target``.

        ``measured``: what ``measure`` returned for each block, in order; empty when ``measures`` is False.
        """

    def allocate(
        self,
        linears: Sequence[LinearSize],
        target: float,
        measured: Sequence[Measured] = (),
        pattern: Pattern = UNSTRUCTURED,
    ) -> dict[str, float]:
        """``sparsities``, checked: every linear has one in [0, 1), and their weighted mean is the target."""
        found = dict(self.sparsities(linears, target, measured, pattern))
        missing = [linear.name for linear in linears if not 0 <= found.get(linear.name, -1) < 1]
        if missing:
            raise UsageError(
                f"{type(self).__name__} gave no sparsity in [0, 1) for {missing[0]} ({len(missing)} in all)."
            )
        total = sum(linear.weights for linear in linears)
        mean = sum(found[linear.name] * linear.weights for linear in linears) / max(total, 1)
        if linears and not pattern.mixed and abs(mean - target) > 1e-6:
            raise UsageError(f"{type(self).__name__} gave a mean sparsity of {mean:.6f}, not the target {target:.6f}.")
        return found
