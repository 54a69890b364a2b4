"""Loading a whole model and its tokenizer, for generation and evaluation."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from secateur.errors import ModelError, UsageError
from secateur.models.checkpoint import Checkpoint
from secateur.models.config_file import links_to_nowhere
from secateur.models.configuration import causal_config, refuse_quantised, said
from secateur.models.model_class import model_class
from secateur.models.skeleton import DTYPES

MAX_LENGTH = 2048
"""Sample length when the model allows it: what the field's programs use."""


def load_model(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model, in evaluation mode. ``dtype`` ``None``: as stored; parameters that the model's class insists on having in
    float32 are, whatever is asked. Raises ``ModelError`` when it cannot be loaded whole, or is quantised and cannot be
    computed with here."""
    model = _loaded(folder, dtype, None)
    if not _is_loaded_quantised(causal_config(folder)):
        return model.to(device).eval()
    try:
        model = model.to(device).eval()
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except Exception as error:  # what is missing for a kind of quantised weights shows in many ways
        raise ModelError(
            f"transformers cannot compute with the quantised weights of {folder}: {said(error)}"
        ) from error
    return model


def check_loadable(folder: Path) -> None:
    """Raise ``ModelError`` when ``load_model`` would: everything is done but reading the numbers. Models that transformers
    loads as quantised are let pass: whether it can shows when it does."""
    if not _is_loaded_quantised(causal_config(folder)):
        _loaded(folder, None, "meta")


def _is_loaded_quantised(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _loaded(folder: Path, dtype: torch.dtype | None, device_map: str | None) -> Any:
    checkpoint, config = Checkpoint(folder), causal_config(folder)
    quantised = _is_loaded_quantised(config)
    if checkpoint.quantised and not quantised:
        refuse_quantised(folder)  # transformers would take the integers for weights
    try:
        loaded: Any = model_class(config).from_pretrained(
            folder,
            config=config,
            dtype="auto" if quantised else dtype or checkpoint.dtype(),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            device_map=device_map,
        )
        model, info = loaded
    except ModelError:
        raise
    except Exception as error:  # libraries that are missing, values that make no sense: each fails its own way
        raise ModelError(f"transformers cannot load {folder}: {said(error, folder)}") from error
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{name} in {folder} has the shape {tuple(stored)}, but config.json asks for {tuple(expected)}."
        )
    absent = sorted(info["missing_keys"])
    if absent:
        raise ModelError(
            f"The checkpoint {folder} lacks {len(absent)} of the weights its config.json asks for, the first being "
            f"{absent[0]!r}. They do not belong together."
        )
    _refuse_end_tokens(folder, model)
    return model


def _refuse_end_tokens(folder: Path, model: Any) -> None:
    """Raise ``ModelError`` for end tokens that are no ids."""
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [found]
    if not all(one is None or isinstance(one, int) for one in ids):
        raise ModelError(
            f"{folder / 'generation_config.json'} names {found!r} as what ends a text (eos_token_id); that must be an id, or a "
            "list of them."
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ``ModelError`` when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        links = links_to_nowhere(folder)
        broken = f" The links {', '.join(links)} in it lead nowhere." if links else ""
        raise ModelError(
            f"The model folder {folder} has no tokenizer that transformers can load ({' '.join(str(error).split())[:200]})."
            f"{broken} Copy the tokenizer files of the original model into it."
        ) from error
    # Long documents are tokenised whole and cut into windows afterwards; the tokenizer's own limit would only warn.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def pick_device(device: str) -> str:
    """``auto`` to ``cuda`` where there is one, else ``cpu``. Raises ``UsageError`` for a device this machine lacks.

    Of several processes launched by torchrun each gets a GPU of its own, ``cuda:LOCAL_RANK``, unless one is named.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    if device.split(":")[0] not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"There is no device {device!r}; known: auto, cpu, cuda, cuda:1, ..., mps.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"The device {device!r} was asked for, but PyTorch sees no CUDA GPU here; use --device cpu.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"PyTorch has no device {device!r} here: {str(error).splitlines()[0]}") from error
    return device


def settled_dtype(name: str, device: str) -> str:
    """``auto`` to ``stored``, or to ``float32`` on a processor without bf16 arithmetic; other names as they are.

    Such a processor computes products of bf16 (or fp16) one number at a time, 2 to 5 times slower in all than fp32
    (docs/results, Processors without bf16). ``device``: as ``pick_device`` gives it.
    """
    if name != "auto":
        return name
    return "float32" if device == "cpu" and not _multiplies_bf16() else "stored"


def pick_dtype(name: str, device: str) -> torch.dtype | None:
    """``None`` for as stored, or one of ``DTYPES``; ``auto`` is settled for ``device``."""
    name = settled_dtype(name, device)
    return None if name == "stored" else DTYPES[name]


@cache
def _multiplies_bf16() -> bool:
    """Whether this processor has bf16 products in hardware that PyTorch's oneDNN uses."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def quiet_transformers() -> None:
    """Only errors from transformers: its progress bars and advice are not ours to print."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
