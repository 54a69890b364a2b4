"""Fidelity: how far the pruned model's next-token distributions are from the dense model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, next_token_logits


@dataclass(frozen=True)
class Fidelity:
    """Means over ``tokens`` next-token predictions, P the dense and Q the other model's distribution.

    ``kl``: KL(P || Q) in nats. ``js``: Jensen-Shannon divergence in nats, at most ln 2 (Khanal and Capone 2024, arXiv
    2409.11233). ``top1``: share of predictions on whose likeliest token both agree.
    """

    kl: float
    js: float
    top1: float
    tokens: int


def fidelity(
    dense: PreTrainedModel,
    other: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fidelity:
    """Compare two models of one vocabulary on ``sequences`` of token ids; every token weighs the same."""
    totals, tokens, done = torch.zeros(3, dtype=torch.float64), 0, 0
    for batch in make_batches(sequences, batch_size or default_batch(dense, sequences)):
        logits, counted = next_token_logits(dense, batch)
        others, _ = next_token_logits(other, batch)
        totals += divergences(logits[counted], others[counted].to(logits.device)).sum(dim=1).double().cpu()
        tokens += int(counted.sum())
        done += len(batch.ids)
        progress(done, len(sequences))
    kl, js, top1 = (totals / max(tokens, 1)).tolist()
    return Fidelity(kl, js, top1, tokens)


def divergences(logits: Tensor, others: Tensor) -> Tensor:
    """KL, Jensen-Shannon divergence and agreement per token, ``[3, tokens]``, from two ``[tokens, vocabulary]``."""
    p, q = logits.log_softmax(dim=-1), others.log_softmax(dim=-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    kl = (p.exp() * (p - q)).sum(dim=-1)
    js = ((p.exp() * (p - middle)).sum(dim=-1) + (q.exp() * (q - middle)).sum(dim=-1)) / 2
    return torch.stack([kl, js, (p.argmax(dim=-1) == q.argmax(dim=-1)).float()])
