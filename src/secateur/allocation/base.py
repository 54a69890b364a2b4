"""What an allocation is, and the check that it meets its target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.errors import UsageError


@dataclass(frozen=True)
class LinearSize:
    """A linear an allocation deals with: its name, the index of its block, its number of weights."""

    name: str
    block: int
    weights: int


class Allocation(ABC):
    """Sparsity per linear. Subclasses are frozen dataclasses: their fields are the settings a recipe can give."""

    @abstractmethod
    def sparsities(self, linears: Sequence[LinearSize], target: float) -> Mapping[str, float]:
        """Sparsity of every linear, by name. Its mean weighted by ``weights`` must equal ``target``."""

    def allocate(self, linears: Sequence[LinearSize], target: float) -> dict[str, float]:
        """``sparsities``, checked: every linear has one in [0, 1), and their weighted mean is the target."""
        found = dict(self.sparsities(linears, target))
        missing = [linear.name for linear in linears if not 0 <= found.get(linear.name, -1) < 1]
        if missing:
            raise UsageError(
                f"{type(self).__name__} gave no sparsity in [0, 1) for {missing[0]} ({len(missing)} in all)."
            )
        total = sum(linear.weights for linear in linears)
        mean = sum(found[linear.name] * linear.weights for linear in linears) / max(total, 1)
        if linears and abs(mean - target) > 1e-6:
            raise UsageError(f"{type(self).__name__} gave a mean sparsity of {mean:.6f}, not the target {target:.6f}.")
        return found
