"""The part of vLLM 0.33 that the engine calls, with its signatures and checks, over a transformers model on the CPU.

Written down from its wheel (sampling_params.py, entrypoints/llm.py, engine/arg_utils.py, outputs.py, exceptions.py,
v1/engine/input_processor.py, v1/sample/sampler.py). It runs one text after another, as no scheduler of vLLM's would.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation import logits_process


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    pass


class SamplingParams:
    def __init__(
        self, n=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, temperature=1.0,
        watermarking=None, top_p=1.0, top_k=0, min_p=0.0, seed=None, stop=None, stop_token_ids=None, ignore_eos=False,
        max_tokens=16, min_tokens=0, logprobs=None, prompt_logprobs=None, prompt_logprob_token_ids=None,
        prompt_logprob_start=None, logprob_token_ids=None, flat_logprobs=False, detokenize=True,
        skip_special_tokens=True, spaces_between_special_tokens=True, include_stop_str_in_output=False,
        output_kind=0, stream_interval=None, skip_clone=False, structured_outputs=None, logit_bias=None,
        allowed_token_ids=None, extra_args=None, bad_words=None, skip_reading_prefix_cache=None,
        thinking_token_budget=None, repetition_detection=None, routed_experts_prompt_start=0,
        trace_decode_token_ids=None,
    ) -> None:  # fmt: skip
        self.__dict__.update({name: value for name, value in locals().items() if name != "self"})
        if not 0 <= temperature <= 2:
            raise VLLMValidationError(f"temperature must be in [0, 2], got {temperature}.")
        if not 0 < top_p <= 1 or not 0 <= min_p <= 1 or top_k < -1 or not isinstance(top_k, int):
            raise VLLMValidationError("top_p, min_p or top_k is out of range.")
        if max_tokens is not None and max_tokens < 1:
            raise VLLMValidationError(f"max_tokens must be at least 1, got {max_tokens}.")
        if stop and not detokenize:
            raise VLLMValidationError("stop strings are only supported when detokenize is True.")
        self.stop_token_ids = list(dict.fromkeys(stop_token_ids or []))


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool


ENGINE_ARGUMENTS = {"max_model_len", "generation_config", "logprobs_mode", "max_num_seqs", "enable_prefix_caching"}
"""Some of those that LLM hands to EngineArgs, a dataclass."""


class LLM:
    seen: list[SamplingParams]
    arguments: dict[str, Any]

    def __init__(
        self, model: str, *, runner="auto", convert="auto", tokenizer=None, tokenizer_mode="auto",
        skip_tokenizer_init=False, trust_remote_code=False, allowed_local_media_path="", allowed_media_domains=None,
        tensor_parallel_size=1, dtype="auto", quantization=None, revision=None, tokenizer_revision=None,
        chat_template=None, seed=0, gpu_memory_utilization=0.92, cpu_offload_gb=0, enforce_eager=False,
        hf_token=None, hf_overrides=None, kv_cache_memory_bytes=None, compilation_config=None, logits_processors=None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        for name in kwargs:
            if name not in ENGINE_ARGUMENTS:
                raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {name!r}")
        if dtype not in {"auto", "half", "float16", "bfloat16", "float", "float32"}:
            raise ValueError(f"Unknown dtype: {dtype!r}")
        LLM.arguments = {"model": model, "skip_tokenizer_init": skip_tokenizer_init, "dtype": dtype, **kwargs}
        LLM.arguments |= {"tensor_parallel_size": tensor_parallel_size, "memory": gpu_memory_utilization}
        LLM.seen = []
        self._model = AutoModelForCausalLM.from_pretrained(model).eval()
        positions = self._model.config.max_position_embeddings
        self._longest = kwargs.get("max_model_len") or positions
        if self._longest > positions:
            raise ValueError(f"User-specified max_model_len ({self._longest}) is greater than {positions}.")

    def generate(
        self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None,
        tokenization_kwargs=None, mm_processor_kwargs=None,
    ) -> list[RequestOutput]:  # fmt: skip
        assert len(prompts) == len(sampling_params)
        LLM.seen += sampling_params
        return [
            self._one(str(number), prompt["prompt_token_ids"], params)
            for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    @torch.inference_mode()
    def _one(self, name: str, prompt: list[int], params: SamplingParams) -> RequestOutput:
        if not 0 < len(prompt) < self._longest:
            raise VLLMValidationError(f"The decoder prompt (length {len(prompt)}) does not fit {self._longest}.")
        generator = torch.Generator().manual_seed(params.seed or 0)
        ids, logprobs, reason = list(prompt), [], "length"
        given: list[dict[int, Logprob] | None] | None = None
        while reason == "length" and len(ids) < min(self._longest, len(prompt) + params.max_tokens):
            logits = self._model(torch.tensor([ids])).logits[0].float()
            raw = logits.log_softmax(-1)
            if given is None:
                given = [None, *({token: Logprob(raw[i, token].item())} for i, token in enumerate(prompt[1:]))]
            token = self._draw(torch.tensor([ids]), logits[-1:].clone(), params, generator)
            ids.append(token)
            logprobs.append({token: Logprob(raw[-1, token].item())})
            if token in params.stop_token_ids or (not params.ignore_eos and token == self._model.config.eos_token_id):
                reason = "stop"
        asked = params.logprobs is not None
        output = CompletionOutput(0, "", ids[len(prompt) :], None, logprobs if asked else None, reason)
        return RequestOutput(name, None, prompt, given if params.prompt_logprobs is not None else None, [output], True)

    @staticmethod
    def _draw(ids: torch.Tensor, logits: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
        if params.allowed_token_ids is not None:
            banned = torch.ones(logits.shape[-1], dtype=torch.bool)
            banned[params.allowed_token_ids] = False
            logits[:, banned] = float("-inf")
        if params.repetition_penalty != 1:
            logits = logits_process.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, logits)
        if params.temperature == 0:
            return int(logits.argmax())
        logits = logits / params.temperature
        if params.top_k > 0:
            logits = logits_process.TopKLogitsWarper(params.top_k)(ids, logits)
        logits = logits_process.TopPLogitsWarper(params.top_p)(ids, logits)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def modules(device: str = "cpu") -> dict[str, types.ModuleType]:
    """What to put among ``sys.modules``."""
    top, platforms, exceptions = (types.ModuleType(name) for name in ("vllm", "vllm.platforms", "vllm.exceptions"))
    top.LLM, top.SamplingParams = LLM, SamplingParams
    platforms.current_platform = types.SimpleNamespace(device_type=device)
    exceptions.VLLMClientError = VLLMClientError
    return {module.__name__: module for module in (top, platforms, exceptions)}
