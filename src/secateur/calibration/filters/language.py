"""Samples in other languages than the ones wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from secateur.calibration.context import Context
from secateur.calibration.filters.base import SampleFilter, Verdict
from secateur.calibration.sample import Sample
from secateur.errors import UsageError
from secateur.registry import suggestion


@dataclass(frozen=True)
class LanguageFilter(SampleFilter):
    """Keep the samples in the languages named.

    ``keep``: ISO 639 codes (``en``, ``de``, ...). A sample stays when the likeliest language of its text is one of them, with
    a probability of at least ``confidence``; the value is that probability. Probabilities are normalised over the languages
    known and tempered by length: a page of prose is near 1, a sentence may be below 0.5. Do not ask of source code.
    Source: py3langid, after Lui & Baldwin 2012 (langid.py): naive Bayes over byte n-grams, offline.
    Cost: linear, once a sample: tens of ms on a slow core for 2,048 tokens.
    """

    keep: list[str] = field(default_factory=lambda: ["en"])
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if not self.keep:
            raise UsageError("The language filter has no language to keep; name some, such as keep: [en, de].")
        known = _identifier().labels
        for code in self.keep:
            if code not in known:
                raise UsageError(f"The language filter knows no language {code!r}{suggestion(code, known)}.")
        if not 0 <= self.confidence <= 1:
            raise UsageError(f"The language filter's confidence is a probability from 0 to 1; found {self.confidence}.")

    def verdict(self, sample: Sample, text: str, context: Context) -> Verdict:
        if not text.strip():
            return Verdict(False, 0.0, "without text")
        found, confidence = _identifier().classify(text)
        if (found, confidence) == _identifier().classify(""):
            return Verdict(False, confidence, "of no language that can be told")
        reason = ""
        if found not in self.keep:
            reason = f"in {found}, not {' or '.join(self.keep)}"
        elif confidence < self.confidence:
            reason = f"in {found}, with a confidence below {self.confidence:g}"
        return Verdict(not reason, confidence, reason)


@cache
def _identifier() -> Any:
    """The identifier with its model, loaded once."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
