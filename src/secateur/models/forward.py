"""The one forward that scores tokens: for perplexity, for filters, for fidelity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.errors import NumericsError
from secateur.models.batches import Batch, scoring_batch


def next_token_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits ``[batch, length - 1, vocabulary]`` fp32 for the tokens after the first, and which of them are not
    padding ``[batch, length - 1]`` bool. Raises ``NumericsError`` when a logit that counts is not finite."""
    with torch.inference_mode():
        logits = model(**batch.model_inputs(model.device), use_cache=False).logits[:, :-1].float()
    counted = batch.token_mask[:, 1:].to(logits.device)
    return _finite(model, logits, counted), counted


def following_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits ``[batch, length, vocabulary]`` fp32 for the token after each. Raises as ``next_token_logits``."""
    with torch.inference_mode():
        logits = model(**batch.model_inputs(model.device), use_cache=False).logits.float()
    return _finite(model, logits, batch.token_mask.to(logits.device))


def _finite(model: PreTrainedModel, logits: Tensor, counted: Tensor) -> Tensor:
    # The largest logit of a row is undefined if any is; a -inf below it is a masked token, and fine.
    if not bool((logits.amax(dim=-1).isfinite() | ~counted).all()):
        raise NumericsError(
            f"The outputs of {type(model).__name__} are not finite on this text: NaN or infinity among its logits. "
            "Compute in a wider type, and check the model's weights."
        )
    return logits


def token_logprobs(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability in nats of every token after the first, 0 where padded: ``[batch, length - 1]`` fp32, and which
    of them count."""
    logits, counted = next_token_logits(model, batch)
    targets = batch.ids[:, 1:].to(logits.device)
    with torch.inference_mode():
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return -losses.view_as(targets) * counted, counted


def default_batch(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> int:
    """How many of ``sequences`` to score at once under ``model``."""
    return scoring_batch(max(map(len, sequences)), model.config.get_text_config().vocab_size)
