"""Token sequences to padded batches; the mask travels along, so padding is never seen as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """``ids`` ``[batch, length]`` int64, padded on the right; ``mask`` ``[batch, length]`` bool (True = token), or
    ``None`` when nothing is padded. ``weights`` ``[batch, length]`` fp64: how much each token counts in statistics, 0 for
    padding; ``None``: all tokens as much."""

    ids: Tensor
    mask: Tensor | None
    weights: Tensor | None = None

    def model_inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Keyword arguments for a transformers model; no mask when there is no padding (the faster attention path)."""
        inputs = {"input_ids": self.ids.to(device)}
        if self.mask is not None:
            inputs["attention_mask"] = self.mask.long().to(device)
        return inputs

    @property
    def token_mask(self) -> Tensor:
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def counted(self) -> Tensor | None:
        """What statistics are told: ``weights``, as bool where they are 0 and 1 only, or the mask."""
        if self.weights is None:
            return self.mask
        whole = bool(((self.weights == 0) | (self.weights == 1)).all())
        return self.weights.bool() if whole else self.weights


LOGITS_BYTES_AT_MOST = 2**29


def scoring_batch(length: int, vocabulary: int) -> int:
    """How many sequences of ``length`` tokens to score at once: their fp32 logits stay within half a GiB, if one's do."""
    return max(1, min(16, LOGITS_BYTES_AT_MOST // (4 * length * vocabulary)))


def make_batches(
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    prompts: Sequence[int] | None = None,
    prompt_weight: float = 1.0,
) -> list[Batch]:
    """Batches of ``batch_size`` sequences, in the order given; the first ``prompts[i]`` tokens of sequence i count
    ``prompt_weight`` in statistics."""
    starts = range(0, len(sequences), batch_size)
    if prompts is None or prompt_weight == 1:
        return [_batch(sequences[start : start + batch_size]) for start in starts]
    return [
        _weighted(_batch(sequences[start : start + batch_size]), prompts[start : start + batch_size], prompt_weight)
        for start in starts
    ]


def unpadded(batch: Batch) -> list[Batch]:
    """The sequences of a batch in batches of one length each, so that nothing is padded."""
    lengths = batch.token_mask.sum(dim=1).tolist()
    parts = []
    for length in dict.fromkeys(lengths):
        rows = [row for row, own in enumerate(lengths) if own == length]
        weights = None if batch.weights is None else batch.weights[rows, :length]
        parts.append(Batch(batch.ids[rows, :length], None, weights))
    return parts


def _weighted(batch: Batch, prompts: Sequence[int], weight: float) -> Batch:
    weights = batch.token_mask.double()
    for row, prompt in enumerate(prompts):
        weights[row, :prompt] *= weight
    return replace(batch, weights=weights)


def _batch(sequences: Sequence[Sequence[int]]) -> Batch:
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = True
    return Batch(ids, None if bool(mask.all()) else mask)
