"""How surprised a model is by the tokens of a sequence that surprise it most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, next_token_logits

POSITIONS = 256
"""Tokens whose distributions are looked at together."""


def min_k(model: PreTrainedModel, sequences: Sequence[Sequence[int]], share: float, plus: bool) -> list[float]:
    """Mean over the ``share`` of each sequence's tokens (rounded down, at least one) with the lowest values.

    A token's value is ``l = log p(x_t|x_<t)``, or with ``plus`` ``(l - mu) / sigma``, ``mu`` and ``sigma²`` being mean and
    variance of ``log p(z|x_<t)`` over ``z ~ p(.|x_<t)``; tokens are ranked by that same value. NaN for a sequence of one
    token. Raises ``NumericsError`` when the model's outputs are not finite.
    Cost: one forward a sequence. Source: Min-K %, arXiv 2310.16789; Min-K %++, arXiv 2404.02936.
    """
    found = []
    for batch in make_batches(sequences, default_batch(model, sequences)):
        logits, counted = next_token_logits(model, batch)
        targets = batch.ids[:, 1:].to(logits.device)
        for row in range(len(targets)):
            tokens = int(counted[row].sum())  # padding is on the right
            values = torch.cat(
                [
                    _values(logits[row, start : min(start + POSITIONS, tokens)], targets[row, start:tokens], plus)
                    for start in range(0, max(1, tokens), POSITIONS)
                ]
            )
            lowest = max(1, math.floor(share * tokens + 1e-9))
            found.append(float(values.sort().values[:lowest].double().mean()))
    return found


@torch.inference_mode()
def _values(logits: Tensor, targets: Tensor, plus: bool) -> Tensor:
    """The values of some tokens ``[tokens]``, from their ``logits`` ``[tokens, vocabulary]``."""
    logprobs = logits.log_softmax(dim=-1)
    own = logprobs.gather(1, targets[: len(logits), None])[:, 0]
    if not plus:
        return own
    probabilities = logprobs.exp()
    logprobs.masked_fill_(probabilities == 0, 0.0)  # 0 · log 0 = 0
    mean = (probabilities * logprobs).sum(dim=-1)
    variance = (probabilities * (logprobs - mean[:, None]).square_()).sum(dim=-1)
    return (own - mean) / variance.sqrt().clamp(min=1e-6)
