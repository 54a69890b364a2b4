"""Generation by transformers, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from secateur.calibration.sample import Sample
from secateur.errors import NumericsError
from secateur.generation.engine import Engine, Sampling
from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, token_logprobs


class TransformersEngine(Engine):
    """``model.generate`` with an explicit configuration: nothing is taken from the model's own generation settings but
    its end tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        own = model.generation_config.eos_token_id if model.generation_config else None
        found = own if own is not None else model.config.get_text_config().eos_token_id
        self.end_tokens: list[int] = [found] if isinstance(found, int) else list(found or [])
        # transformers fills what a configuration leaves open from the model's own, which may ban or penalise tokens.
        self.model.generation_config = GenerationConfig()

    def generate(self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int) -> list[Sample]:
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
        prompt_tokens = ids.shape[1]
        config = GenerationConfig(
            do_sample=True,
            max_new_tokens=length - prompt_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=self.end_tokens or None,
            pad_token_id=self.end_tokens[0] if self.end_tokens else 0,
        )
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            generate: Any = self.model.generate
            try:
                found = generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise NumericsError(
                    "The model's outputs became NaN or infinite while it was generating, so no token could be drawn. "
                    "Compute in a wider type (--set dtype=float32), and check the model's weights."
                ) from error
        return [self._sample(row, prompt_tokens) for row in found.tolist()]

    def _sample(self, row: list[int], prompt_tokens: int) -> Sample:
        for position in range(prompt_tokens, len(row)):
            if row[position] in self.end_tokens:
                return Sample(tuple(row[: position + 1]), prompt_tokens, "eos", origin="self")
        return Sample(tuple(row), prompt_tokens, "length", origin="self")

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        scores = []
        for batch in make_batches(sequences, default_batch(self.model, sequences)):
            logprobs, counted = token_logprobs(self.model, batch)
            scores += (logprobs.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).tolist()
        return scores
