"""Tiny models of a type: built, run, given weights that matter, and saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model_types.hints import HINTS
from model_types.products import no_cache
from model_types.sizes import FIRST, SCALES, SPECIAL_TOKENS, Scale
from model_types.tiny import changed_fields, shrink, sub_configs

MOST_PARAMETERS = 2_000_000
LARGEST_LOGIT = 1e4
GAINS = (4.0, 2.0, 1.0)
LENGTHS = (48, 17, 33, 48, 25, 40)
"""Of the calibration sequences: unlike, so that batches are padded."""


class NotBuilt(Exception):
    """No tiny model of a type could be built; the message says why, attempt by attempt."""


@dataclass(frozen=True)
class Made:
    """A saved tiny model. ``gain``: what its matrices were multiplied by. ``whole``: the class that saved it, where that
    is not the causal LM itself (a vision-language model around it). ``scale``: what differs from ``FIRST``."""

    model_type: str
    class_name: str
    whole: str
    parameters: int
    gain: float
    scale: dict[str, Any]
    untouched: tuple[str, ...]
    largest_logit: float


def all_types() -> list[str]:
    """Every model type that transformers maps to a causal LM."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def make(model_type: str, folder: Path) -> Made:
    """Save a tiny model of the type that runs, comes back as it was and has finite logits. Raises ``NotBuilt``."""
    failures: dict[str, None] = {}
    for scale, untouched in attempts(model_type):
        try:
            config = tiny_config(model_type, scale, untouched)
            refuse_large(AutoModelForCausalLM, config)
            model, gain = finite_model(config)
            whole = save_whole(config, model, gain, folder) if type(model.config) is not type(config) else ""
            if not whole:
                model.save_pretrained(folder)
                if type(model.config) is not type(config):
                    config.save_pretrained(folder)
            loaded = load(folder)
            refuse_unlike(model, loaded, check_weights=not whole)
        except Exception as error:  # what a class says of a wrong size is of any kind
            failures[f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"] = None
            continue
        different = {name: value for name, value in asdict(scale).items() if value != getattr(FIRST, name)}
        largest = float(logits(loaded, sequences(loaded)[0]).abs().max())
        count = loaded.num_parameters()
        return Made(model_type, type(loaded).__name__, whole, count, gain, different, untouched, largest)
    raise NotBuilt("; ".join(list(failures)[:4]))


def default_config(model_type: str) -> PreTrainedConfig:
    """The type's configuration with its default values, and what ``HINTS`` has to say of it."""
    hint = HINTS.get(model_type)
    return CONFIG_MAPPING[model_type](**(hint.base if hint else {}))


def attempts(model_type: str) -> Iterator[tuple[Scale, tuple[str, ...]]]:
    """What to try, in order: every scale, then the first with each field in turn left at its default."""
    hint = HINTS.get(model_type)
    scales = [replace(scale, **(hint.scale if hint else {})) for scale in SCALES]
    for scale in scales:
        yield scale, ()
    for field in changed_fields(default_config(model_type)):
        yield scales[0], (field,)


def tiny_config(model_type: str, scale: Scale, untouched: tuple[str, ...] = ()) -> PreTrainedConfig:
    config = shrink(default_config(model_type), scale, untouched)
    hint = HINTS.get(model_type)
    for path, value in (hint.final if hint else {}).items():
        *parents, name = path.split(".")
        setattr(reduce(getattr, parents, config), name, value)
    for part in (config, *sub_configs(config).values()):
        part.use_cache = False
    return config


def refuse_large(auto: Any, config: PreTrainedConfig) -> None:
    """Raise ``ValueError`` when the model would have more than ``MOST_PARAMETERS``."""
    with init_empty_weights(include_buffers=False):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters")


def finite_model(config: PreTrainedConfig) -> tuple[PreTrainedModel, float]:
    """The model with the largest gain at which its logits are finite and not absurdly large, and that gain."""
    largest = float("nan")
    for gain in GAINS:
        model = lively(AutoModelForCausalLM, config, gain)
        largest = float(logits(model, sequences(model)[0]).abs().max())
        if largest < LARGEST_LOGIT:
            return model, gain
    raise ValueError(f"logits as large as {largest}")


def save_whole(config: PreTrainedConfig, causal: PreTrainedModel, gain: float, folder: Path) -> str:
    """Save the model that ``config`` is of, of which the causal LM is a part; its class, or nothing if that fails.

    Such checkpoints (vision and language) are what people have, and ``AutoModelForCausalLM`` takes its part of them.
    """
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForMultimodalLM):
        try:
            refuse_large(auto, config)
            model = lively(auto, config, gain)
            model.save_pretrained(folder)
            refuse_unlike(causal, load(folder), check_weights=False)
        except Exception:  # there is none, or its own parts do not fit: then the causal LM alone is saved
            continue
        return type(model).__name__
    return ""


def lively(auto: Any, config: PreTrainedConfig, gain: float) -> PreTrainedModel:
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32).eval()
    enliven(model, gain)
    return model


@torch.no_grad()
def enliven(model: nn.Module, gain: float) -> None:
    """Make weights large enough for activations to matter, and channels unlike: matrices are multiplied by ``gain`` (those
    that begin as zeros are drawn), vectors (norms, biases) shifted at random."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim == 1:
            parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5, alpha=0.8)
        elif parameter.ndim > 1 and not parameter.any():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02 * gain)
        elif parameter.ndim > 1:
            parameter.mul_(gain)


def load(folder: Path) -> PreTrainedModel:
    """What ``AutoModelForCausalLM`` makes of the folder. Raises ``ValueError`` when weights are missing."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    bad = {name: sorted(map(str, found))[:3] for name, found in info.items() if found and name != "unexpected_keys"}
    if bad:
        raise ValueError(f"transformers does not load what it saved: {bad}")
    return model.eval()


def refuse_unlike(model: PreTrainedModel, loaded: PreTrainedModel, check_weights: bool) -> None:
    """Raise ``ValueError`` unless ``loaded`` is a model like ``model``, with finite logits, and its weights if asked."""
    saved, found = model.state_dict(), loaded.state_dict()
    if saved.keys() != found.keys() or any(saved[name].shape != found[name].shape for name in saved):
        raise ValueError("what was loaded has other tensors than what was saved")
    if check_weights and not all(torch.equal(saved[name], found[name]) for name in saved):
        raise ValueError("what was loaded has other values than what was saved")
    if not bool(logits(loaded, sequences(loaded)[0]).isfinite().all()):
        raise ValueError("the logits of what was loaded are not finite")


def sequences(model: PreTrainedModel) -> list[list[int]]:
    """Random tokens of the model's vocabulary, no special ones, in sequences of ``LENGTHS``."""
    vocabulary = smallest_vocabulary(model.config)
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(SPECIAL_TOKENS, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def smallest_vocabulary(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    return min(FIRST.vocabulary, int(text.vocab_size))


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([tokens]), **no_cache(model)).logits
