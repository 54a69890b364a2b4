"""What is counted once of a text, and compared often: its n-grams, their sketch, its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from secateur.calibration.diversity import counts
from secateur.calibration.similarity import shingles, sketch
from secateur.calibration.sources.base import Tokenizer

SHINGLE_WORDS = 3
EXACT_AT_MOST = 2_000_000
"""Distinct n-grams of both sides together up to which they are also compared exactly."""


class TextFacts:
    """Texts and the token ids of each; special tokens, which say nothing of the text, are left out."""

    def __init__(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
        special = set(tokenizer.all_special_ids)
        self.texts = texts
        self.ids = [[token for token in sequence if token not in special] for sequence in ids]
        self.vocabulary = len(tokenizer)
        self._sketches: dict[int, Any] = {}

    @cached_property
    def shingles(self) -> set[str]:
        """The distinct n-grams of ``SHINGLE_WORDS`` words."""
        return shingles(self.texts, SHINGLE_WORDS)

    @cached_property
    def counts(self) -> Counter[int]:
        """How often each token occurs."""
        return counts(self.ids)

    def sketch(self, permutations: int) -> Any:
        """The MinHash of ``shingles``."""
        if permutations not in self._sketches:
            self._sketches[permutations] = sketch(self.shingles, permutations)
        return self._sketches[permutations]
