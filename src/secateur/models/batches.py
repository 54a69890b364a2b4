"""Token sequences to padded batches; the mask travels along, so padding is never seen as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """``ids`` ``[batch, length]`` int64, padded on the right; ``mask`` ``[batch, length]`` bool (True = token), or
    ``None`` when nothing is padded."""

    ids: Tensor
    mask: Tensor | None

    def model_inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Keyword arguments for a transformers model; no mask when there is no padding (the faster attention path)."""
        inputs = {"input_ids": self.ids.to(device)}
        if self.mask is not None:
            inputs["attention_mask"] = self.mask.long().to(device)
        return inputs

    @property
    def token_mask(self) -> Tensor:
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask


LOGITS_BYTES_AT_MOST = 2**29


def scoring_batch(length: int, vocabulary: int) -> int:
    """How many sequences of ``length`` tokens to score at once: their fp32 logits stay within half a GiB, if one's do."""
    return max(1, min(16, LOGITS_BYTES_AT_MOST // (4 * length * vocabulary)))


def make_batches(sequences: Sequence[Sequence[int]], batch_size: int) -> list[Batch]:
    """Batches of ``batch_size`` sequences, in the order given."""
    return [_batch(sequences[start : start + batch_size]) for start in range(0, len(sequences), batch_size)]


def _batch(sequences: Sequence[Sequence[int]]) -> Batch:
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = True
    return Batch(ids, None if bool(mask.all()) else mask)
