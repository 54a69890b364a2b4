"""The same sparsity everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.allocation.base import Allocation, LinearSize, Measured
from secateur.masks.pattern import Pattern


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same sparsity for every linear."""

    def sparsities(
        self, linears: Sequence[LinearSize], target: float, measured: Sequence[Measured], pattern: Pattern
    ) -> Mapping[str, float]:
        return {linear.name: target for linear in linears}
