"""What a filter is: it looks at all samples and gives each a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample


@dataclass(frozen=True)
class Verdict:
    """Whether a sample stays; if not, why. ``value`` is what was measured."""

    keep: bool
    value: float
    reason: str = ""


class Filter(ABC):
    """Subclasses are frozen dataclasses: their fields are the settings a recipe can give.

    The first line of a subclass's docstring is its summary.
    """

    @property
    def keeps(self) -> float:
        """The share of samples expected to stay; the caller makes that many more."""
        return 1.0

    @abstractmethod
    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        """One verdict a sample, in order. Raises ``CalibrationError`` when what the filter reads cannot be had."""


def apply_filters(filters: Sequence[Filter], samples: Sequence[Sample], context: Context) -> list[Verdict]:
    """Every filter in turn on what the ones before it kept; the verdict that dropped a sample, or the last one."""
    verdicts = [Verdict(True, 0.0)] * len(samples)
    for judge in filters:
        kept = [index for index, verdict in enumerate(verdicts) if verdict.keep]
        for index, verdict in zip(kept, judge.judge([samples[index] for index in kept], context), strict=True):
            verdicts[index] = verdict
    return verdicts
