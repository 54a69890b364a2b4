"""Tiny models of a type: built, run, given weights that matter, and saved as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_types.hints import HINTS
from model_types.tiny import SCALES, SPECIAL_TOKENS, Scale, changed_fields, shrink

MOST_PARAMETERS = 2_000_000
LENGTHS = (48, 17, 33, 48, 25, 40)
"""Of the calibration sequences: unlike, so that batches are padded."""


class NotBuilt(Exception):
    """No tiny model of a type could be built; the message says why, attempt by attempt."""


@dataclass(frozen=True)
class Built:
    """A tiny model and how it was come by. ``gain``: what its matrices were multiplied by."""

    model: PreTrainedModel
    scale: Scale
    untouched: tuple[str, ...]
    gain: float


def default_config(model_type: str) -> PreTrainedConfig:
    """The type's configuration with its default values, and what ``HINTS`` has to say of it."""
    hint = HINTS.get(model_type)
    config = CONFIG_MAPPING[model_type](**(hint.base if hint else {}))
    config.use_cache = False
    return config


def build(model_type: str) -> Built:
    """A tiny model of the type that runs, with finite logits. Raises ``NotBuilt``."""
    failures: dict[str, str] = {}
    for scale, untouched in attempts(model_type):
        try:
            config = tiny_config(model_type, scale, untouched)
            model, gain = finite_model(config)
        except Exception as error:  # what a class says of a wrong size is of any kind
            failures.setdefault(_reason(error), f"{scale} {untouched}")
            continue
        return Built(model, scale, untouched, gain)
    raise NotBuilt("; ".join(list(failures)[:4]))


def attempts(model_type: str) -> Iterator[tuple[Scale, tuple[str, ...]]]:
    """What to try, in order: every scale, then the first with each field in turn left at its default."""
    for scale in SCALES:
        yield scale, ()
    for field in changed_fields(default_config(model_type)):
        yield SCALES[0], (field,)


def tiny_config(model_type: str, scale: Scale, untouched: tuple[str, ...] = ()) -> PreTrainedConfig:
    hint = HINTS.get(model_type)
    config = shrink(default_config(model_type), scale, untouched)
    for path, value in (hint.final if hint else {}).items():
        *parents, name = path.split(".")
        place = config
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, value)
    config.use_cache = False
    return config


def finite_model(config: PreTrainedConfig) -> tuple[PreTrainedModel, float]:
    """The model with the largest gain at which its logits are finite and not absurdly large."""
    with init_empty_weights(include_buffers=False):
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters")
    found = float("nan")
    for gain in (4.0, 2.0, 1.0):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        enliven(model, gain)
        found = float(logits(model, sequences()[0]).abs().max())
        if found < 1e4:
            return model, gain
    raise ValueError(f"logits as large as {found}")


@torch.no_grad()
def enliven(model: nn.Module, gain: float) -> None:
    """Make weights large enough for activations to matter, and channels unlike: matrices are multiplied by ``gain``,
    vectors (norms, biases) shifted at random."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim >= 2:
            parameter.mul_(gain)
        elif parameter.ndim == 1:
            parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5, alpha=0.8)


def sequences(vocabulary: int = 320) -> list[list[int]]:
    """Random tokens, no special ones, in sequences of ``LENGTHS``."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(SPECIAL_TOKENS, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits


def save(built: Built, folder: Path) -> dict[str, object]:
    """Save the model as transformers does; what there is to say of it. Raises ``NotBuilt`` when it does not come back."""
    built.model.save_pretrained(folder)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    bad = {name: sorted(map(str, found))[:3] for name, found in info.items() if found}
    before, after = logits(built.model, sequences()[0]), logits(loaded.eval(), sequences()[0])
    facts = {
        "class": type(built.model).__name__,
        "parameters": built.model.num_parameters(),
        "scale": {k: v for k, v in asdict(built.scale).items() if v != getattr(SCALES[0], k)},
        "untouched": built.untouched,
        "gain": built.gain,
        "loading": bad,
        "same": torch.equal(before, after),
        "largest_difference": float((before - after).abs().max()),
        "largest_logit": float(before.abs().max()),
    }
    (folder / "tiny.json").write_text(json.dumps(facts))
    return facts


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
