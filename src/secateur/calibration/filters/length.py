"""Samples that are too short or too long for what they are to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.filters.base import Filter, Verdict
from secateur.calibration.sample import Sample
from secateur.errors import UsageError


@dataclass(frozen=True)
class LengthFilter(Filter):
    """Drop the samples of too few or too many tokens.

    Kept are those of ``shortest`` to ``longest`` tokens, both included; begin and end tokens count. Samples that packing
    cut are all of one length: this is for generations, and for ``packing: whole``. Cost: none.
    """

    shortest: int = 2
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.shortest < 1 or (self.longest is not None and self.longest < self.shortest):
            raise UsageError(
                "The length filter keeps shortest to longest tokens, shortest at least 1 and longest no less; found "
                f"shortest={self.shortest}, longest={self.longest}."
            )

    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        verdicts = []
        for length in (len(sample.token_ids) for sample in samples):
            reason = f"shorter than {self.shortest} tokens" if length < self.shortest else ""
            if self.longest is not None and length > self.longest:
                reason = f"longer than {self.longest} tokens"
            verdicts.append(Verdict(not reason, float(length), reason))
        return verdicts
