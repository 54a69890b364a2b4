"""What config.json says of a model, as Secateur takes it: the same for the skeleton and for a model that is loaded whole.

What only says how to compute or what to return (the attention kernel, the form of outputs) is ours to choose; what cannot
be built is refused here, before anything is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from secateur.errors import ModelError
from secateur.models.checkpoint import Checkpoint
from secateur.models.config_file import CONFIG, NAMED_WEIGHTS, config_values
from secateur.models.model_class import from_config, model_class

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What a model cannot have none of, where its config has it."""

LONGEST_WORDS = 300
"""Characters of an error of transformers that are passed on."""

POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""What configs call the number of positions, the usual name first."""


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder, without its wishes about kernels and outputs: attention is computed by SDPA, or
    eagerly where the model has no SDPA or config.json asks for it. Raises ``ModelError`` when transformers does not know
    it, or it describes no model."""
    values = config_values(folder)
    _refuse_unknown(folder, values)
    _refuse_impossible(folder, values)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for part in _parts(config):
            part.return_dict, part.output_hidden_states, part.output_attentions = True, False, False
            part.fusion_config = None
        config._attn_implementation = "eager" if "eager" in _asked_attention(values) else None
        config._experts_implementation = None
    except Exception as error:  # each configuration class checks its values its own way
        raise ModelError(f"transformers cannot read {folder / CONFIG}: {said(error, folder)}") from error
    text = _text_part(folder, config)
    _refuse_impossible(folder, {name: getattr(text, name, None) for name in (*SIZES, "sliding_window")})
    return config


def text_config(folder: Path) -> PreTrainedConfig:
    """The part of a model folder's configuration that is about text. Raises ``ModelError`` when that cannot be told."""
    return _text_part(folder, read_config(folder))


def vocabulary_size(folder: Path) -> int:
    """How many tokens the model of a folder knows. Raises ``ModelError`` when its config does not say."""
    found = getattr(text_config(folder), "vocab_size", None)
    if not isinstance(found, int):
        raise ModelError(f"{folder / CONFIG} does not say how many tokens the model knows (vocab_size).")
    return found


def max_positions(folder: Path) -> int | None:
    """How many positions the model was made for, from its config; ``None`` when it does not say."""
    config = text_config(folder)
    for found in (getattr(config, name, None) for name in POSITIONS):
        if isinstance(found, int | float) and found > 0:
            return int(found)
    return None


def causal_config(folder: Path) -> PreTrainedConfig:
    """``read_config`` of a model that transformers has as a decoder-only causal language model. Raises ``ModelError`` for
    others."""
    config = read_config(folder)
    chosen = model_class(config)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{folder} is an encoder-decoder model by its {CONFIG}; Secateur works on decoder-only models."
        )
    built, named = _built_from(config, chosen), getattr(config, NAMED_WEIGHTS, None)
    if getattr(built, NAMED_WEIGHTS, None) != named:
        raise ModelError(
            f"{folder / CONFIG} names the weights {named!r} ({NAMED_WEIGHTS}), but transformers builds the language model of "
            f"{type(config).__name__} from its text_config, where they are not named. Name them there too."
        )
    return config


def empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of ``folder``'s config.json with parameters on the meta device and real buffers.

    Raises ``ModelError`` for a model that is no causal language model, that cannot be built, or that is quantised.
    """
    config = causal_config(folder)
    refuse_quantised(folder)
    try:
        with init_empty_weights(include_buffers=False):
            return from_config(config, dtype)
    except Exception as error:  # each model class fails its own way on values that make no sense
        raise ModelError(
            f"{folder / CONFIG} describes no model that transformers can build: {said(error, folder)}"
        ) from error


def refuse_quantised(folder: Path) -> None:
    """Raise ``ModelError`` for a model whose weights are quantised, by its config.json or by what its files hold."""
    by_config, checkpoint = quantisation(folder), Checkpoint(folder)
    stored = checkpoint.quantised
    if not by_config and not stored:
        return
    reasons = [f"{CONFIG} has {by_config}"] if by_config else []
    if stored:
        kinds = ", ".join(sorted({checkpoint.stored_as(name) for name in stored}))
        others = f" and {len(stored) - 1} more are" if len(stored) > 1 else " is"
        reasons.append(f"{stored[0]}{others} stored as {kinds}")
    raise ModelError(
        f"The model {folder} is quantised: {'; '.join(reasons)}. Secateur prunes fp32, bf16 and fp16 weights: take the "
        "unquantised original, and quantise what comes out."
    )


def quantisation(folder: Path) -> str | None:
    """What config.json says of quantised weights, in a few words; ``None`` when it says nothing."""
    values = config_values(folder)
    for place, part in [("", values), *((f"{key}.", part) for key, part in values.items() if isinstance(part, dict))]:
        found = _quantisation_of(part)
        if found:
            return place + found
    return None


def _quantisation_of(part: dict[str, Any]) -> str | None:
    whole = part.get("quantization_config")
    if whole is not None:
        return f"quantization_config{_method(whole)}"
    compression = part.get("compression_config")  # of compressed-tensors before 0.9
    if isinstance(compression, dict) and (compression.get("quantization_config") or compression.get("config_groups")):
        return "compression_config"
    mlx = part.get("quantization")
    if isinstance(mlx, dict) and ("bits" in mlx or "quant_algo" in mlx):
        return f"quantization{_method(mlx)}"
    bare = next((key for key in ("quant_method", "load_in_4bit", "load_in_8bit") if part.get(key)), None)
    return f"{bare} {part[bare]}" if bare else None


def _method(found: Any) -> str:
    """The method and the bits that a quantisation config names, in brackets; nothing where it names neither."""
    if not isinstance(found, dict):
        return ""
    method = found.get("quant_method") or found.get("quant_algo")
    bits = found.get("bits") or found.get("w_bit")
    known = [str(method)] if method else []
    known += [f"{bits} bits"] if bits else []
    return f" ({', '.join(known)})" if known else ""


def _refuse_unknown(folder: Path, values: dict[str, Any]) -> None:
    """Raise ``ModelError`` for a model type that transformers does not have."""
    kind, path = values.get("model_type"), folder / CONFIG
    if "configuration_files" in values or (isinstance(kind, str) and kind in CONFIG_MAPPING):
        return
    if kind is None:
        raise ModelError(
            f"transformers cannot read {path}: it has no model_type, which says what kind of model it is. Take the "
            "config.json that belongs to the model."
        )
    own = "; it brings its own code, which Secateur does not run" if values.get("auto_map") else ""
    raise ModelError(
        f"transformers cannot read {path}: it does not know the model_type {kind!r}{own}. Use a newer transformers, or another "
        "model."
    )


def _refuse_impossible(folder: Path, values: dict[str, Any]) -> None:
    """Raise ``ModelError`` for sizes that no model has, and for dtypes that PyTorch does not have."""
    start = f"{folder / CONFIG} describes no model"
    for part in (values, values.get("text_config")):
        if not isinstance(part, dict):
            continue
        for name in SIZES:
            found = part.get(name)
            if isinstance(found, int) and found < 1:
                raise ModelError(f"{start}: {name} is {found}, and must be at least 1.")
        window = part.get("sliding_window")
        if window is not None and not isinstance(window, int):
            raise ModelError(f"{start}: sliding_window is {window!r}, and must be a whole number.")
        for name in ("dtype", "torch_dtype"):
            found = part.get(name)
            if isinstance(found, str) and not isinstance(getattr(torch, found, None), torch.dtype):
                raise ModelError(f"{start}: {name} is {found!r}, which is no dtype of PyTorch, such as bfloat16.")


def _text_part(folder: Path, config: PreTrainedConfig) -> PreTrainedConfig:
    try:
        return config.get_text_config()
    except ValueError as error:
        raise ModelError(
            f"{folder / CONFIG} describes several language models in one ({type(config).__name__}); Secateur works on "
            f"decoder-only models. transformers says: {said(error)}"
        ) from error


def _built_from(config: PreTrainedConfig, chosen: Any) -> PreTrainedConfig:
    """What transformers builds the causal language model from: the whole config, or its part about text."""
    text = config.sub_configs.get("text_config")
    if text is None or chosen is not AutoModelForCausalLM:
        return config
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return config.get_text_config() if model.config_class == text else config


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and the configs in it."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def _asked_attention(values: dict[str, Any]) -> set[Any]:
    asked = [values.get(key) for key in ("attn_implementation", "_attn_implementation")]
    return {one for one in asked if isinstance(one, str)}


def said(error: Exception, folder: Path | None = None) -> str:
    """An error of transformers in one line, which ends in a full stop. Where it says no more than a value that it does not
    know, it is told by which name config.json of ``folder`` has it."""
    words = " ".join(str(error).split())
    if isinstance(error, KeyError) and folder is not None:
        names = [name for name, value in _leaves(config_values(folder)) if value == error.args[0]]
        words = f"{names[0]} is {error.args[0]!r}, which it does not know" if names else words
    cut = "..." if len(words) > LONGEST_WORDS else ""
    return f"{words[:LONGEST_WORDS].rstrip('.') or type(error).__name__}{cut or '.'}"


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a JSON object, each with its name in it."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, values
