"""What a selection is: it chooses the samples of the set from a larger pool."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample
from secateur.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """``indices``: the chosen samples, in the order they are to have. ``values``: what was measured of each of the pool,
    in its order; empty when nothing was."""

    indices: list[int]
    values: list[float]


class Selection(ABC):
    """Subclasses are frozen dataclasses: their fields are the settings a recipe can give.

    The first line of a subclass's docstring is its summary.
    """

    pool: float = 4.0
    """How many times the asked samples it chooses from."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.pool) and self.pool >= 1):
            raise UsageError(
                f"A selection's pool is a number of at least 1, times the asked samples; found {self.pool}."
            )

    def pool_of(self, count: int) -> int:
        """How many samples to make so that ``count`` can be chosen."""
        return math.ceil(count * self.pool - 1e-9)

    @property
    def reads(self) -> Reads:
        """What it reads besides the samples."""
        return Reads()

    @abstractmethod
    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        """``count`` of ``samples``, which are at least as many; what is random follows ``context.seed``."""
