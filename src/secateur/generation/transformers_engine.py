"""Generation by transformers, in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.configuration_utils import PreTrainedConfig

from secateur.calibration.sample import Sample
from secateur.errors import NumericsError, UsageError
from secateur.generation.engine import Engine, EngineSettings, Sampling
from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, token_logprobs
from secateur.models.loading import load_model, pick_dtype
from secateur.registry import suggestion

PAGE = 256
"""Tokens of a page of the key-value cache in continuous batching."""


@dataclass(frozen=True)
class Transformers(EngineSettings):
    """model.generate in batches (the default).

    ``continuous``: transformers' continuous batching, where a text that has ended no longer costs anything. It draws from
    one generator for all texts and takes no repetition penalty, so ``auto`` stays with plain batches everywhere; with
    ``true`` the same seed gives the same ids, but others than plain batches do. It was never run on a GPU.
    """

    continuous: Literal["auto"] | bool = "auto"

    def open(self, folder: Path, device: str, dtype: str) -> Engine:
        return TransformersEngine(load_model(folder, device, pick_dtype(dtype, device)), self.continuous is True)


class TransformersEngine(Engine):
    """``model.generate`` with an explicit configuration: nothing is taken from the model's own generation settings but
    its end tokens. Texts are scored while they are written."""

    def __init__(self, model: PreTrainedModel, continuous: bool = False) -> None:
        self.model, self.continuous = model, continuous
        self.end_tokens: list[int] = end_tokens(model.generation_config, model.config)
        # transformers fills what a configuration leaves open from the model's own, which may ban or penalise tokens.
        self.model.generation_config = GenerationConfig()

    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        most = self._new_tokens(prompts, length, each)
        config = self._config(sampling, max(most))
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            if self.continuous:
                check_continuous(sampling)
                written = write_continuously(self.model, prompts, config, seed)
                return [
                    ended([*prompt, *ids[:count]], len(prompt), self.end_tokens)
                    for prompt, ids, count in zip(prompts, written, most, strict=True)
                ]
            torch.manual_seed(seed)
            with torch.inference_mode():
                return self._batch(prompts, most, sampling, config)

    def _new_tokens(self, prompts: Sequence[Sequence[int]], length: int, each: bool) -> list[int]:
        """How many tokens each prompt gets. In a batch all texts that still go on, and those that have ended, step through
        the positions together, so the longest prompt bounds how far the shortest can go."""
        longest = max(map(len, prompts))
        if not each:
            return [length - longest] * len(prompts)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = length if positions is None else max(positions, length) - longest
        return [min(length - len(prompt), room) for prompt in prompts]

    def _batch(
        self, prompts: Sequence[Sequence[int]], most: Sequence[int], sampling: Sampling, config: GenerationConfig
    ) -> list[Sample]:
        """One plain batch, of at most so many new tokens each. Options may call the model otherwise than once a token, and
        then the texts are not scored on the way."""
        scored = not sampling.options
        longest, padding = max(map(len, prompts)), config.pad_token_id
        ids = torch.tensor([[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        inputs = {"inputs": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        generate: Any = self.model.generate
        witness = Witness()
        hook = self.model.register_forward_hook(witness.forward_done) if scored else None
        try:
            found = generate(
                **inputs,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([witness, Full(longest, most)] if scored else []),
                logits_processor=LogitsProcessorList(self._penalty(sampling, mask)),
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise not_finite() from error
        finally:
            if hook:
                hook.remove()
        samples = [
            ended(row[longest - len(prompt) : longest + count], len(prompt), self.end_tokens)
            for row, prompt, count in zip(found.tolist(), prompts, most, strict=True)
        ]
        return self._scored(samples, witness.logprobs) if scored else samples

    def _scored(self, samples: list[Sample], steps: list[Tensor]) -> list[Sample]:
        """The samples with their scores: the steps' log-probabilities ``[batch]`` and, by a short forward, the prompts'."""
        drawn = torch.stack(steps, dim=1).tolist()
        prompts = [sample.token_ids[: sample.prompt_tokens] for sample in samples]
        given = [0.0] * len(samples)
        if max(map(len, prompts)) > 1:
            batches = make_batches(prompts, default_batch(self.model, prompts))
            given = [total for batch in batches for total in token_logprobs(self.model, batch)[0].sum(dim=1).tolist()]
        found = []
        for sample, start, row in zip(samples, given, drawn, strict=True):
            total = start + math.fsum(row[: len(sample.token_ids) - sample.prompt_tokens])
            if not math.isfinite(total):
                raise not_finite()
            found.append(sample.scored(total / max(len(sample.token_ids) - 1, 1)))
        return found

    def _penalty(self, sampling: Sampling, mask: Tensor) -> list[LogitsProcessor]:
        if sampling.greedy or sampling.repetition_penalty == 1:
            return []
        return [Penalty(float(sampling.repetition_penalty), mask.argmax(dim=1), self.end_tokens)]

    def _config(self, sampling: Sampling, new_tokens: int) -> GenerationConfig:
        drawn: dict[str, Any] = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p or None,
            "repetition_penalty": 1.0,  # see Penalty
        }
        ours = {"max_new_tokens", "eos_token_id", "pad_token_id"} | drawn.keys()
        known = GenerationConfig().to_dict().keys()
        for name in sampling.options:
            if name not in known or name in ours:
                raise UsageError(
                    f"The option {name!r} of the transformers engine is no parameter of its GenerationConfig that is left "
                    f"to options{suggestion(name, known - ours)}."
                )
        return GenerationConfig(
            **({"do_sample": False} if sampling.greedy else drawn),
            **sampling.options,
            max_new_tokens=new_tokens,
            eos_token_id=self.end_tokens or None,
            pad_token_id=self.end_tokens[0] if self.end_tokens else 0,
        )

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        scores = []
        for batch in make_batches(sequences, default_batch(self.model, sequences)):
            logprobs, counted = token_logprobs(self.model, batch)
            scores += (logprobs.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).tolist()
        return scores


class Witness(StoppingCriteria):
    """Sees each step of ``model.generate``: the model's own logits by a forward hook, then the tokens drawn, as a
    criterion that stops nothing. (A logits processor would see them with penalties applied.)

    ``logprobs``: of each step's tokens, ``[batch]`` fp32 nats. Cost: one log-softmax of ``[batch, vocabulary]`` a step.
    """

    def __init__(self) -> None:
        self.logprobs: list[Tensor] = []
        self._logits: Tensor | None = None

    def forward_done(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._logits = output.logits[:, -1]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        assert self._logits is not None
        self.logprobs.append(-cross_entropy(self._logits.float(), input_ids[:, -1], reduction="none"))
        self._logits = None
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Full(StoppingCriteria):
    """Ends each text at ``most`` tokens after the ``longest`` prompt's, where they differ."""

    def __init__(self, longest: int, most: Sequence[int]) -> None:
        self.longest, self.most = longest, torch.tensor(most)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return (input_ids.shape[1] - self.longest >= self.most).to(input_ids.device)


class Penalty(LogitsProcessor):
    """transformers' repetition penalty, at the place where it has it, but not on ``ends``. ``padding``: of each text, ``[batch]``."""

    def __init__(self, penalty: float, padding: Tensor, ends: Sequence[int]) -> None:
        self.penalty, self.padding, self.ends = penalty, padding, list(ends)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        beams = len(input_ids) // len(self.padding)
        padding = self.padding.repeat_interleave(beams).to(input_ids.device)
        found = RepetitionPenaltyLogitsProcessor(self.penalty, padding)(input_ids, scores)
        found[:, self.ends] = scores[:, self.ends]
        return found


def end_tokens(own: GenerationConfig | None, config: PreTrainedConfig) -> list[int]:
    """The tokens at which a model ends a text: those of its generation settings, else of its config."""
    named = own.eos_token_id if own else None
    found = named if named is not None else config.get_text_config().eos_token_id
    return [found] if isinstance(found, int) else list(found or [])


def ended(row: Sequence[int], prompt_tokens: int, ends: Sequence[int]) -> Sample:
    """What was written, up to its first end token."""
    for position in range(prompt_tokens, len(row)):
        if row[position] in ends:
            return Sample(tuple(row[: position + 1]), prompt_tokens, "eos", origin="self")
    return Sample(tuple(row), prompt_tokens, "length", origin="self")


def not_finite() -> NumericsError:
    return NumericsError(
        "The model's outputs became NaN or infinite while it was generating, so no token could be drawn. "
        "Compute in a wider type (--set dtype=float32), and check the model's weights."
    )


def check_continuous(sampling: Sampling) -> None:
    """Raise ``UsageError`` for what continuous batching would leave out without an error."""
    penalised = not sampling.greedy and (sampling.repetition_penalty != 1 or sampling.min_p != 0)
    if penalised or sampling.options:
        raise UsageError(
            "Continuous batching of transformers draws by temperature, top_k and top_p alone; found repetition_penalty "
            f"{sampling.repetition_penalty}, min_p {sampling.min_p} and options {dict(sampling.options)}. Set "
            "calibration.generation.repetition_penalty to 1, or calibration.generation.engine.continuous to false."
        )


def write_continuously(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, seed: int
) -> list[list[int]]:
    """The tokens after each prompt.

    All prompts wait in the queue before the first step, and the cache holds them all: so what is drawn together depends
    on neither timing nor free memory. No attention kernel is fetched from a hub.
    """
    batching = _batching(prompts, config.max_new_tokens or 0, seed)
    found: dict[str, Any] = {}
    manager, start = None, cast(Any, model.init_continuous_batching)
    try:
        manager = start(generation_config=config, continuous_batching_config=batching)
        requests = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=config.max_new_tokens)
        manager.start()
        while len(found) < len(requests):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = result
            elif result is None and not manager.is_running():
                break
    except ValueError as error:
        raise UsageError(
            f"transformers cannot run {type(model).__name__} with continuous batching: {error} "
            "Set calibration.generation.engine.continuous to false."
        ) from error
    finally:
        if manager is not None:
            manager.stop(block=True)
            manager.destroy()
    failed = [found[name].error if name in found else "no result" for name in requests]
    if any(failed):
        reason = next(filter(None, failed))
        raise (
            not_finite()
            if "probability tensor" in reason
            else UsageError(
                f"Continuous batching of transformers failed on {sum(map(bool, failed))} of {len(requests)} texts: {reason}. "
                "Set calibration.generation.engine.continuous to false."
            )
        )
    return [list(found[name].generated_tokens) for name in requests]


def _batching(prompts: Sequence[Sequence[int]], new_tokens: int, seed: int) -> Any:
    pages = max(math.ceil((len(prompt) + new_tokens) / PAGE) for prompt in prompts)
    try:
        return transformers.ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=len(prompts) * (pages + 1),
            max_batch_tokens=sum(map(len, prompts)) + len(prompts),
            max_requests_per_batch=len(prompts),
            allow_block_sharing=False,
            auto_switch_to_flash=False,
            seed=seed,
        )
    except (AttributeError, TypeError) as error:
        raise UsageError(
            f"The continuous batching of transformers {transformers.__version__} is another one than Secateur knows "
            f"({error}). Install transformers 5.17 or later, or set calibration.generation.engine.continuous to false."
        ) from error
