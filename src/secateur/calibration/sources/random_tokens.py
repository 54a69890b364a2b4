"""Random tokens: a control that has the model's vocabulary and nothing of its language."""

from __future__ import annotations

import random
from collections.abc import Iterator

from secateur.calibration.packing import Document
from secateur.calibration.sources.base import Source, Tokenizer

DOCUMENT_TOKENS = 2**17  # longer than any sample, so that packing by document finds room


class RandomTokens(Source):
    """Uniformly random tokens (a control). Special tokens are left out."""

    name = "random-tokens"

    def documents(self, tokenizer: Tokenizer, seed: int) -> Iterator[Document]:
        rng = random.Random(seed)
        special = set(tokenizer.all_special_ids)
        tokens = [token for token in range(len(tokenizer)) if token not in special]
        while True:
            yield Document(tuple(rng.choices(tokens, k=DOCUMENT_TOKENS)), ended=False, origin=self.name)
