"""Perplexity of a model by a named protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from secateur.evaluation.protocol import EvaluationText, Protocol
from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, token_logprobs

LOSS_AT_MOST = 700.0


@dataclass(frozen=True)
class Perplexity:
    """``value`` by ``protocol`` over ``sequences`` windows or documents of ``tokens`` tokens in all. ``bos``: where the begin
    token stands (``evaluation.begin.Place``), if that is known; ``note``: what is to be known of that."""

    value: float
    protocol: str
    sequences: int
    tokens: int
    bos: str | None = None
    note: str = ""

    def scores(self) -> dict[str, Any]:
        """As a scores file has it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def perplexity(
    model: PreTrainedModel,
    text: EvaluationText,
    protocol: Protocol,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Perplexity of ``model`` on ``text``. Padding within a batch changes nothing.

    A loss above ``LOSS_AT_MOST`` nats counts as that, so that the value stays a finite number.
    """
    return perplexity_of(sequence_losses(model, text.sequences, batch_size, progress), text, protocol)


def perplexity_of(losses: Sequence[float], text: EvaluationText, protocol: Protocol) -> Perplexity:
    """The perplexity by ``protocol``, from the mean loss in nats of each sequence of ``text``."""
    concat = protocol.window is not None
    value = _exp(sum(losses) / len(losses)) if concat else sum(map(_exp, losses)) / len(losses)
    place, note = (text.begin.place, text.begin.note) if text.begin else (None, "")
    return Perplexity(value, str(protocol), len(losses), text.tokens, place, note)


def sequence_losses(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    batch_size: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Mean loss in nats over each sequence's tokens after the first."""
    losses: list[float] = []
    for batch in make_batches(sequences, batch_size or default_batch(model, sequences)):
        logprobs, counted = token_logprobs(model, batch)
        losses += (-logprobs.sum(dim=1) / counted.sum(dim=1)).tolist()
        progress(len(losses), len(sequences))
    return losses


def _exp(loss: float) -> float:
    return math.exp(min(loss, LOSS_AT_MOST))
