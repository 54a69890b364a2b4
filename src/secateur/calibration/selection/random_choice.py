"""The control of every selection: none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection


@dataclass(frozen=True)
class RandomChoice(Selection):
    """Random samples (the control): the first of the pool, which packing drew at random.

    Cost: none.
    """

    pool: float = 1.0

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        return Choice(list(range(count)), [])
