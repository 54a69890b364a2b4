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
        """``sparsities``, checked: every linear has one in [0, 1), and their weighted mean is the target.

        A mixed N:M pattern moves each to the nearest multiple of 1/M, at most 1 - 1/M: the mean is then only near the
        target, and deviations below 1/(2M) vanish. Raises ``UsageError`` when the sparsities differ and an N:M pattern
        that is not mixed allows only one.
        """
        found = dict(self.sparsities(linears, target, measured, pattern))
        missing = [linear.name for linear in linears if not 0 <= found.get(linear.name, -1) < 1]
        if missing:
            raise UsageError(
                f"{type(self).__name__} gave no sparsity in [0, 1) for {missing[0]} ({len(missing)} in all)."
            )
        if pattern.mixed and pattern.group is not None:
            return {name: _nearest(sparsity, pattern.group) for name, sparsity in found.items()}
        if pattern.sparsity is not None and any(abs(each - pattern.sparsity) > 1e-9 for each in found.values()):
            raise UsageError(
                f"{type(self).__name__} gives linears different sparsities, but the pattern {pattern} allows only "
                f"{pattern.sparsity:g}. Use the pattern 'mixed {pattern}', which chooses an N:{pattern.group} for each "
                "linear (hardware made for one N:M cannot use the whole), or the allocation 'uniform'."
            )
        total = sum(linear.weights for linear in linears)
        mean = sum(found[linear.name] * linear.weights for linear in linears) / max(total, 1)
        if linears and abs(mean - target) > 1e-6:
            raise UsageError(f"{type(self).__name__} gave a mean sparsity of {mean:.6f}, not the target {target:.6f}.")
        return found


def _nearest(sparsity: float, group: int) -> float:
    """The nearest sparsity that keeps a whole number of every ``group`` weights, at least one."""
    return 1 - max(round(group * (1 - sparsity)), 1) / group
