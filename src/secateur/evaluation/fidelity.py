"""Fidelity: how far the pruned model's next-token distributions are from the dense model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.models.batches import Batch, make_batches
from secateur.models.forward import default_batch, next_token_logits

TOGETHER = 64
"""Tokens whose distributions are compared at a time: few enough for a processor's cache."""


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


class DenseLogits:
    """The dense model's next-token logits over fixed sequences: computed when first asked for, and kept from then on while
    all of them take at most ``memory`` bytes, else computed again each time. Kept or not, they are the same numbers."""

    def __init__(
        self, model: PreTrainedModel, sequences: Sequence[Sequence[int]], memory: int = 0, batch_size: int | None = None
    ) -> None:
        self.model, self.sequences = model, sequences
        self.batches = make_batches(sequences, batch_size or default_batch(model, sequences)) if sequences else []
        vocabulary = model.config.get_text_config().vocab_size
        self.bytes = 4 * vocabulary * sum(len(sequence) - 1 for sequence in sequences)
        self._kept: dict[int, Tensor] | None = {} if self.bytes <= memory else None

    @property
    def keeps(self) -> bool:
        return self._kept is not None

    def of(self, number: int) -> Tensor:
        """``[tokens, vocabulary]`` fp32, of the ``number``-th batch's tokens after the first, padding left out."""
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        logits, counted = next_token_logits(self.model, self.batches[number])
        found = logits[counted]
        if self._kept is not None:
            self._kept[number] = found = found.cpu()
        return found


def fidelity(
    dense: PreTrainedModel,
    other: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fidelity:
    """Compare two models of one vocabulary on ``sequences`` of token ids; every token weighs the same."""
    return read(other, DenseLogits(dense, sequences, 0, batch_size), progress)[1]


def read(
    model: PreTrainedModel,
    dense: DenseLogits,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[float], Fidelity]:
    """Each sequence's mean loss in nats under ``model``, as ``sequence_losses``, and its fidelity to the dense one: both
    from one forward."""
    losses: list[float] = []
    totals, tokens = torch.zeros(3, dtype=torch.float64), 0
    for number, batch in enumerate(dense.batches):
        logits, counted = next_token_logits(model, batch)
        losses += _losses(logits, counted, batch)
        theirs = dense.of(number).to(logits.device)
        totals += divergences(theirs, logits[counted]).sum(dim=1).double().cpu()
        tokens += int(counted.sum())
        progress(len(losses), len(dense.sequences))
    kl, js, top1 = (totals / max(tokens, 1)).tolist()
    return losses, Fidelity(kl, js, top1, tokens)


def _losses(logits: Tensor, counted: Tensor, batch: Batch) -> list[float]:
    targets = batch.ids[:, 1:].to(logits.device)
    with torch.inference_mode():
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return ((each.view_as(targets) * counted).sum(dim=1) / counted.sum(dim=1)).tolist()


def divergences(logits: Tensor, others: Tensor) -> Tensor:
    """KL, Jensen-Shannon divergence and agreement per token, ``[3, tokens]``, from two ``[tokens, vocabulary]``."""
    parts = zip(logits.split(TOGETHER), others.split(TOGETHER), strict=True)
    return (
        torch.cat([_divergences(some, same) for some, same in parts], dim=1) if len(logits) else logits.new_zeros(3, 0)
    )


def _weighted(shares: Tensor, differences: Tensor) -> Tensor:
    """The sum of both's products, where a share of 0 counts nothing, of a token that both models rule out (-inf) too."""
    found = (shares * differences).sum(dim=-1)
    if bool(found.isnan().any()):
        found = torch.where(shares > 0, shares * differences, 0).sum(dim=-1)
    return found


def _divergences(logits: Tensor, others: Tensor) -> Tensor:
    p, q = logits.log_softmax(dim=-1), others.log_softmax(dim=-1)
    dense, pruned = p.exp(), q.exp()
    middle = torch.logaddexp(p, q) - math.log(2)
    kl = _weighted(dense, p - q)
    js = (_weighted(dense, p - middle) + _weighted(pruned, q - middle)) / 2
    return torch.stack([kl, js, (p.argmax(dim=-1) == q.argmax(dim=-1)).float()])
