"""Generation by vLLM: many texts at once on a GPU, each with a seed of its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from secateur.calibration.sample import Sample
from secateur.errors import ModelError, NumericsError, UsageError
from secateur.generation.engine import Engine, EngineSettings, Sampling, batch_seed
from secateur.generation.transformers_engine import end_tokens, ended
from secateur.models.configuration import max_positions, read_config
from secateur.models.loading import settled_dtype
from secateur.registry import suggestion


@dataclass(frozen=True)
class VLLM(EngineSettings):
    """vLLM, for large models on GPUs (extra: vllm).

    ``tensor_parallel``: GPUs that share the model. ``memory``: the share of each GPU's memory that vLLM may take.
    ``max_length``: positions to reserve, and one more for a begin token; null: all that the model was made for.
    ``options``: further arguments of vllm.LLM. What the model's outputs are in 16 bits depends on what runs beside them, so
    the same seed gives the same ids on the same machine only as far as vLLM's arithmetic does. Its repetition penalty counts
    end tokens too, those of a chat template among them: with the style chat set
    calibration.generation.repetition_penalty to 1.
    """

    tensor_parallel: int = 1
    memory: float = 0.9
    max_length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            self.tensor_parallel < 1
            or not 0 < self.memory <= 1
            or (self.max_length is not None and self.max_length < 2)
        ):
            raise UsageError(
                "The engine vllm needs tensor_parallel >= 1, 0 < memory <= 1 and max_length >= 2; found "
                f"{self.tensor_parallel}, {self.memory} and {self.max_length}."
            )

    def open(self, folder: Path, device: str, dtype: str) -> Engine:
        vllm, platform, refusal = _vllm()
        if ":" in device or device != platform:
            raise UsageError(
                f"The vLLM installed here runs on {platform or 'no device'}, and picks its devices itself; the device "
                f"asked for is {device!r}. Set the device to what it runs on, and CUDA_VISIBLE_DEVICES to choose GPUs."
            )
        settled = settled_dtype(dtype, device)
        arguments = {
            "model": str(folder),
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # nothing of the model's own sampling settings
            "logprobs_mode": "raw_logprobs",
            "tensor_parallel_size": self.tensor_parallel,
            "gpu_memory_utilization": self.memory,
            "max_model_len": self._reserved(max_positions(folder)),
            "dtype": "auto" if settled == "stored" else settled,
            "seed": 0,
        }
        _refuse_taken("vllm.LLM", self.options, arguments)
        try:
            model = vllm.LLM(**arguments, **self.options)
        except TypeError as error:
            raise UsageError(
                f"vLLM does not take an option of calibration.generation.engine.options: {error}. They are the arguments "
                "of vllm.LLM."
            ) from error
        except (refusal, ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"vLLM cannot load {folder}: {' '.join(str(error).split())[:300]}") from error
        settings = folder / "generation_config.json"
        own = GenerationConfig.from_pretrained(folder) if settings.is_file() else None
        return VLLMEngine(model, vllm.SamplingParams, end_tokens(own, read_config(folder)), refusal)

    def _reserved(self, positions: int | None) -> int | None:
        if self.max_length is None or self.max_length == positions:
            return self.max_length
        return self.max_length + 1


class VLLMEngine(Engine):
    """``vllm.LLM`` fed with token ids. Each text's seed follows from the batch's and its row, so it does not depend on
    how vLLM schedules them; scores are the log-probabilities before penalties and temperature."""

    def __init__(self, model: Any, params: Callable[..., Any], ends: list[int], refusal: type[Exception]) -> None:
        self.model, self.params, self.end_tokens, self.refusal = model, params, ends, refusal

    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        longest = max(map(len, prompts))
        most = [length - (len(prompt) if each else longest) for prompt in prompts]
        drawn = {
            "stop_token_ids": self.end_tokens,
            "ignore_eos": True,  # the end tokens are those above, and no others
            "repetition_penalty": sampling.repetition_penalty,
            "logprobs": 0,
            "prompt_logprobs": 0,
            "detokenize": False,
            **({"temperature": 0.0, "repetition_penalty": 1.0} if sampling.greedy else _distribution(sampling)),
        }
        _refuse_taken("vllm.SamplingParams", sampling.options, {**drawn, "seed": 0, "max_tokens": 0})
        known = inspect.signature(self.params).parameters
        for name in sampling.options:
            if name not in known:
                raise UsageError(
                    f"The option {name!r} of the vllm engine is no parameter of vllm.SamplingParams"
                    f"{suggestion(name, known)}."
                )
        found = self._run(
            [list(prompt) for prompt in prompts],
            [
                {**drawn, "max_tokens": count, "seed": batch_seed(seed, row), **sampling.options}
                for row, count in enumerate(most)
            ],
        )
        samples = []
        for prompt, output in zip(prompts, found, strict=True):
            ids, written = list(output.outputs[0].token_ids), output.outputs[0].logprobs
            sample = ended([*prompt, *ids], len(prompt), self.end_tokens)
            generated = len(sample.token_ids) - len(prompt)
            total = _total(prompt[1:], output.prompt_logprobs[1:]) + _total(ids[:generated], written[:generated])
            if not math.isfinite(total):
                raise NumericsError(
                    "The model's outputs became NaN or infinite while vLLM was generating. Compute in a wider type "
                    "(--set dtype=float32), and check the model's weights."
                )
            samples.append(sample.scored(total / max(len(sample.token_ids) - 1, 1)))
        return samples

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The last token is let through as the only one allowed: so a sequence may be as long as the model takes."""
        longer = [list(ids) for ids in sequences if len(ids) > 1]
        forced = {"max_tokens": 1, "temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0, "detokenize": False}
        forced["ignore_eos"] = True
        found = iter(
            self._run([ids[:-1] for ids in longer], [{**forced, "allowed_token_ids": ids[-1:]} for ids in longer])
        )
        scores = []
        for ids in sequences:
            total = 0.0
            if len(ids) > 1:
                output = next(found)
                total = _total(ids[1:-1], output.prompt_logprobs[1:]) + _total(ids[-1:], output.outputs[0].logprobs)
            if not math.isfinite(total):
                raise NumericsError(
                    "The outputs of the model under vLLM are not finite on this text. Compute in a wider type, and check "
                    "the model's weights."
                )
            scores.append(total / max(len(ids) - 1, 1))
        return scores

    def _run(self, prompts: list[list[int]], settings: list[dict[str, Any]]) -> list[Any]:
        if not prompts:
            return []
        try:
            params = [self.params(**one) for one in settings]
            return self.model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        except (self.refusal, ValueError, TypeError) as error:
            raise UsageError(
                f"vLLM refuses what was asked of it: {' '.join(str(error).split())[:300]} Change calibration.length, the "
                "sampling settings or the options of calibration.generation."
            ) from error


def _distribution(sampling: Sampling) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,  # 0: no limit there too
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }


def _total(ids: Sequence[int], positions: Sequence[Mapping[int, Any]]) -> float:
    """Sum of the log-probabilities of ``ids``, each found at its own position."""
    return math.fsum(position[token].logprob for token, position in zip(ids, positions, strict=True))


def _refuse_taken(what: str, options: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    for name in options:
        if name in taken:
            raise UsageError(
                f"The option {name!r} of the vllm engine is set by Secateur itself and no argument of {what} that is left to "
                "options; use the setting that stands for it, or leave it out."
            )


def _vllm() -> tuple[Any, str, type[Exception]]:
    """vLLM, the kind of device it runs on, and what it raises when it refuses a request."""
    try:
        import vllm  # pyright: ignore[reportMissingImports]
        from vllm.exceptions import VLLMClientError  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"The engine vllm needs vLLM, which cannot be imported here ({error}); install it with pip install vllm, or use "
            "calibration.generation.engine=transformers."
        ) from error
    return vllm, current_platform.device_type, VLLMClientError
