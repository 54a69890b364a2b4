"""The text that sets are compared with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from secateur.calibration.packing import Document, Packing
from secateur.calibration.sample import Sample
from secateur.calibration.sources.base import Tokenizer
from secateur.diagnosis.facts import TextFacts
from secateur.diagnosis.observation import Observed, observe
from secateur.errors import CalibrationError
from secateur.models.skeleton import Skeleton


class Reference:
    """Texts of a reference corpus, and what is counted of them once for all sets. ``name`` is how messages call it;
    ``samples``: the texts as tokens, where the reference is a set itself.

    Raises ``CalibrationError`` when there are no words in it.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        name: str = "reference",
        seed: int = 0,
        samples: Sequence[Sample] = (),
    ) -> None:
        self.texts, self.tokenizer, self.name, self.seed = texts, tokenizer, name, seed
        self.samples = samples
        if not any(text.strip() for text in texts):
            raise CalibrationError(f"The reference {name!r} holds no text, so nothing can be compared with it.")
        self._observed: dict[Any, Observed] = {}

    @cached_property
    def facts(self) -> TextFacts:
        ids: Sequence[Sequence[int]] = [sample.token_ids for sample in self.samples] or [
            self.tokenizer.encode(text, add_special_tokens=False) for text in self.texts
        ]
        found = TextFacts(self.texts, ids, self.tokenizer)
        if not found.shingles:
            raise CalibrationError(
                f"The reference {self.name!r} has no three words in a row, so nothing can be compared with it; name a larger one."
            )
        return found

    def samples_like(self, samples: Sequence[Sample]) -> list[Sample]:
        """As many windows of the reference as there are ``samples``, or as it has, of the longest one's length; the begin
        token stands where it stands in ``samples``. Of a reference that is a set: its own samples."""
        if self.samples:
            return list(self.samples)
        bos = _common_start(samples, self.tokenizer)
        length = max(len(sample.token_ids) for sample in samples)
        packing = Packing(length, "concat", "none" if bos is None else "sample", bos, self._end())
        tokens = sum(map(len, self.facts.ids)) + len(self.facts.ids) * (packing.eos is not None)
        count = min(len(samples), tokens // max(packing.content, 1))
        if not count:
            raise CalibrationError(
                f"The reference {self.name!r} has {tokens:,} tokens, fewer than one sample of {length}; name a larger one."
            )
        documents = [Document(tuple(ids)) for ids in self.facts.ids]
        random.Random(self.seed).shuffle(documents)
        return list(packing.pack(documents, count, self.seed, self.name).samples)

    def observed(
        self, skeleton: Skeleton, samples: Sequence[Sample], batch: int, activation_bytes: int | None = None
    ) -> Observed:
        """What the dense model does with ``samples_like`` these; sets of one size and length share it."""
        longest = max(len(sample.token_ids) for sample in samples)
        shape = () if self.samples else (len(samples), longest, _common_start(samples, self.tokenizer))
        key = (id(skeleton), *shape)
        if key not in self._observed:
            ids = [sample.token_ids for sample in self.samples_like(samples)]
            self._observed[key] = observe(skeleton, ids, batch, activation_bytes, spectra=False)
        return self._observed[key]

    def _end(self) -> int | None:
        found = getattr(self.tokenizer, "eos_token_id", None)
        return found if isinstance(found, int) else None


def _common_start(samples: Sequence[Sample], tokenizer: Tokenizer) -> int | None:
    """The special token that every sample begins with, if there is one."""
    starts = {sample.token_ids[0] for sample in samples if sample.token_ids}
    return starts.pop() if len(starts) == 1 and starts <= set(tokenizer.all_special_ids) else None
