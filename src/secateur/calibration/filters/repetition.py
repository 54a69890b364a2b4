"""Samples that say the same thing again and again: what a model writes when it is stuck."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.context import Context
from secateur.calibration.filters.base import SampleFilter, Verdict
from secateur.calibration.sample import Sample
from secateur.errors import UsageError


@dataclass(frozen=True)
class RepetitionFilter(SampleFilter):
    """Drop the samples that repeat themselves.

    ``most``: the highest share of a sample's token ``n``-grams that stood in it before, ``1 - distinct / all``; a sample
    below ``n`` tokens has none. ``ratio``: the highest compression ratio of its text, UTF-8 bytes over zlib's; ``null``:
    not looked at. The value is the share, or the ratio where that is why a sample goes.

    The rule is Gopher's (Rae et al. 2021, arXiv 2112.11446, table A1: at most 0.15 of a document's characters in repeated
    5-grams of words), the default looser, for token 4-grams repeat more and for text that is not prose. In windows of
    2,048 tokens 19 in 20 of C4, OpenWebText, Wikipedia, WikiText and books stay below 0.28, mathematics in LaTeX reaches
    0.53, source code 0.55, or 0.8 where the tokenizer spells out indentation; a loop comes near 1. Ratios grow with
    length: that prose has 2.1 to 3.6, source code up to 5.6, so 6 is safe at that length; Whisper's 2.4 (Radford et al.
    2022, arXiv 2212.04356) is for a few sentences.
    Cost: linear, once a sample: some ms for 2,048 tokens; ``ratio`` needs the text.
    """

    n: int = 4
    most: float = 0.5
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.most <= 1:
            raise UsageError(
                "The repetition filter needs n-grams of at least 1 token and most as a share from 0 to 1; found "
                f"n={self.n}, most={self.most}."
            )
        if self.ratio is not None and not self.ratio > 0:
            raise UsageError(f"The repetition filter's ratio is above 0, or null; found {self.ratio}.")

    @property
    def reads_text(self) -> bool:
        return self.ratio is not None

    def verdict(self, sample: Sample, text: str, context: Context) -> Verdict:
        share = self._repeated(sample.token_ids)
        if share > self.most:
            return Verdict(False, share, f"with more than {100 * self.most:g}% of {self.n}-grams repeated")
        if self.ratio is not None and (ratio := compression_ratio(text)) > self.ratio:
            return Verdict(False, ratio, f"of a compression ratio above {self.ratio:g}")
        return Verdict(True, share)

    def _repeated(self, ids: Sequence[int]) -> float:
        grams = len(ids) - self.n + 1
        if grams < 1:
            return 0.0
        distinct = len(set(zip(*(ids[start:] for start in range(self.n)), strict=False)))
        return (grams - distinct) / grams


def compression_ratio(text: str) -> float:
    """Bytes of the text over its bytes when compressed; 0 for none."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw))
