"""Generation by transformers, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from secateur.calibration.sample import Sample
from secateur.errors import NumericsError, UsageError
from secateur.generation.engine import Engine, EngineSettings, Sampling
from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, token_logprobs
from secateur.models.loading import load_model, pick_dtype
from secateur.registry import suggestion


@dataclass(frozen=True)
class Transformers(EngineSettings):
    """model.generate in batches (the default)."""

    def open(self, folder: Path, device: str, dtype: str) -> Engine:
        return TransformersEngine(load_model(folder, device, pick_dtype(dtype)))


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
        longest = max(map(len, prompts))
        padding = self.end_tokens[0] if self.end_tokens else 0
        ids = torch.tensor([[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        config = self._config(sampling, length - longest, padding)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            generate: Any = self.model.generate
            try:
                found = generate(
                    ids.to(self.model.device), attention_mask=mask.to(self.model.device), generation_config=config
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise NumericsError(
                    "The model's outputs became NaN or infinite while it was generating, so no token could be drawn. "
                    "Compute in a wider type (--set dtype=float32), and check the model's weights."
                ) from error
        return [
            self._sample(row[longest - len(prompt) :], len(prompt))
            for row, prompt in zip(found.tolist(), prompts, strict=True)
        ]

    def _config(self, sampling: Sampling, new_tokens: int, padding: int) -> GenerationConfig:
        drawn: dict[str, Any] = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p or None,
            "repetition_penalty": sampling.repetition_penalty,
        }
        known = GenerationConfig().to_dict().keys()
        for name in sampling.options:
            if name not in known or name in drawn:
                raise UsageError(
                    f"The option {name!r} of the transformers engine is no parameter of its GenerationConfig that is left "
                    f"to options{suggestion(name, known - drawn.keys())}."
                )
        return GenerationConfig(
            **({"do_sample": False} if sampling.greedy else drawn),
            **sampling.options,
            max_new_tokens=new_tokens,
            eos_token_id=self.end_tokens or None,
            pad_token_id=padding,
        )

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
