"""What a filter is: it looks at all samples and gives each a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

from secateur.calibration.context import Context
from secateur.calibration.filters import FILTERS
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample

REASONS_TOLD = 6


@dataclass(frozen=True)
class Verdict:
    """Whether a sample stays; if not, why. ``value`` is what was measured, ``by`` the name of the filter that did."""

    keep: bool
    value: float
    reason: str = ""
    by: str = ""


class Filter(ABC):
    """Subclasses are frozen dataclasses: their fields are the settings a recipe can give.

    The first line of a subclass's docstring is its summary. Reasons are counted, so they say what is alike in many
    samples ("shorter than 8 tokens"); what differs from sample to sample is the verdict's value.
    """

    @property
    def keeps(self) -> float:
        """The share of samples expected to stay, 1 where it cannot be known; the caller makes that many more."""
        return 1.0

    @property
    def reads(self) -> Reads:
        """What it reads besides the samples."""
        return Reads()

    @abstractmethod
    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        """One verdict a sample, in order. Raises ``CalibrationError`` when what the filter reads cannot be had."""


class SampleFilter(Filter):
    """A filter that judges every sample by itself, and once: all samples so far are judged again each round.

    Subclasses write ``verdict``; ``reads_text`` says whether they look at the text.
    """

    @property
    def reads_text(self) -> bool:
        return True

    @abstractmethod
    def verdict(self, sample: Sample, text: str, context: Context) -> Verdict:
        """Of one sample; ``text`` is empty when the filter does not read it."""

    def judge(self, samples: Sequence[Sample], context: Context) -> list[Verdict]:
        known = self._known.setdefault(context, {})
        new = list({sample.token_ids: sample for sample in samples if sample.token_ids not in known}.values())
        texts = context.texts(new) if new and self.reads_text else [""] * len(new)
        for sample, text in zip(new, texts, strict=True):
            known[sample.token_ids] = self.verdict(sample, text, context)
        return [known[sample.token_ids] for sample in samples]

    @cached_property
    def _known(self) -> WeakKeyDictionary[Context, dict[tuple[int, ...], Verdict]]:
        return WeakKeyDictionary()


def apply_filters(filters: Sequence[Filter], samples: Sequence[Sample], context: Context) -> list[Verdict]:
    """Every filter in turn on what the ones before it kept; the verdict that dropped a sample, or the last one."""
    verdicts = [Verdict(True, 0.0)] * len(samples)
    for judge in filters:
        kept = [index for index, verdict in enumerate(verdicts) if verdict.keep]
        if not kept:
            break
        name = _name(judge)
        for index, verdict in zip(kept, judge.judge([samples[index] for index in kept], context), strict=True):
            verdicts[index] = replace(verdict, by=name)
    return verdicts


def tally(verdicts: Sequence[Verdict]) -> str:
    """What was dropped, by filter and reason with counts, the most frequent first; empty when nothing was."""
    counts = Counter((verdict.by, verdict.reason) for verdict in verdicts if not verdict.keep)
    told = [f"{by}: {count:,} {reason}" for (by, reason), count in counts.most_common(REASONS_TOLD)]
    others = sum(counts.values()) - sum(count for _, count in counts.most_common(REASONS_TOLD))
    return "; ".join([*told, f"{others:,} for other reasons"] if others else told)


def _name(judge: Filter) -> str:
    """The name a filter is registered under; its class's where it is not."""
    kind = type(judge)
    target = f"{kind.__module__}:{kind.__qualname__}"
    return next((entry.name for entry in FILTERS.entries().values() if entry.target == target), kind.__name__)
