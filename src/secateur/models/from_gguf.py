"""A model folder of a GGUF file: ``python -m secateur.models.from_gguf FILE FOLDER``.

GGUF is the single file that llama.cpp reads, mostly quantised. transformers dequantises the weights and rebuilds the
tokenizer; what it leaves to do is here: no weight may stay at random, digits are split as the file says, and the folder
is plain safetensors, without a trace of the quantisation.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from secateur.errors import ModelError, SecateurError, UsageError
from secateur.models.locate import is_gguf

UNQUANTISED = {"F32": torch.float32, "F16": torch.float16}
"""Weights that are mostly stored so are kept so. Others are written in bf16: nearly every model was published in it, and
next to what the quantisation took, its rounding is nothing (SmolLM2-135M at Q4_1: perplexity 14.22 with and without)."""

DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Values of ``tokenizer.ggml.pre`` for which llama.cpp splits off every digit and then splits as GPT-2 does."""
LIKE_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4"}
"""Values of ``tokenizer.ggml.pre`` for which llama.cpp splits as GPT-2 does, which transformers does for all it does not
know."""


def write_folder(file: Path, folder: Path, dtype: torch.dtype | None = None) -> list[str]:
    """Write the model of a GGUF file as a folder of safetensors with its tokenizer; gives warnings, as sentences.

    ``folder`` must not exist, or be empty; once it is there it is complete. ``dtype`` ``None``: bf16, or as stored if that
    is not quantised. Raises ``UsageError`` for a taken folder and without the package gguf, ``ModelError`` for a file that
    is no GGUF, damaged, or of a kind that transformers cannot read.
    """
    file, folder = Path(file).expanduser(), Path(folder).expanduser()
    reader = _open(file, folder)
    from secateur.models.loading import quiet_transformers

    quiet_transformers()
    model, tokenizer = _load(file, dtype or _dtype(reader), str(_field(reader, "general.architecture")))
    warnings = _split_digits(tokenizer, _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre"))
    if (positions := getattr(model.config, "max_position_embeddings", None)) is not None:
        tokenizer.model_max_length = positions
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return warnings


def _open(file: Path, folder: Path) -> Any:
    """The reader of a whole GGUF file, once it is sure that ``folder`` can be written."""
    if not file.is_file():
        raise ModelError(f"There is no file {file}.")
    if not is_gguf(file):
        raise ModelError(f"{file} is no GGUF file: it does not begin with the letters GGUF.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; name a folder that does not exist yet, or is empty.")
    try:
        from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(f"Reading GGUF files needs the package gguf: pip install gguf (found: {error}).") from error
    try:
        return GGUFReader(file)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise ModelError(
            f"The GGUF file {file} ({file.stat().st_size:,} bytes) is truncated or damaged: {_first_words(error)}. "
            "Download it again."
        ) from error


def _field(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents())


def _dtype(reader: Any) -> torch.dtype:
    """What most of the weights' bytes are stored as, if they are not quantised; else bf16."""
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    return UNQUANTISED.get(max(sizes, key=sizes.__getitem__, default=""), torch.bfloat16)


def _load(file: Path, dtype: torch.dtype, architecture: str) -> tuple[Any, Any]:
    """The model with plain weights, and the tokenizer."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Newer versions can leave the weights in their blocks; older ones have no such setting, and always unpack them.
    kind = getattr(transformers, "GgufConfig", None)
    unpacked = {"quantization_config": kind(dequantize=True)} if kind else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True, **unpacked
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        raise ModelError(
            f"transformers {transformers.__version__} cannot make a model of {file}, whose architecture is {architecture!r}: "
            f"{_first_words(error)}. Another version may; or take the model's safetensors."
        ) from error
    model, info = loaded
    absent = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    if absent:
        raise ModelError(
            f"{file} lacks {len(absent)} of the weights of a {model.config.model_type} model, the first being {absent[0]!r}. "
            "If it is one of several parts, join them first (llama-gguf-split --merge)."
        )
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.hf_quantizer = None
    model.generation_config._from_model_config = False
    return model, tokenizer


def _first_words(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def _split_digits(tokenizer: Any, kind: str | None, splits: str | None) -> list[str]:
    """Mend how a byte-level tokenizer splits off digits, which transformers does not read from the file; warnings.

    ``kind``, ``splits``: the file's tokenizer.ggml.model and tokenizer.ggml.pre.
    """
    from tokenizers import pre_tokenizers

    if kind != "gpt2" or splits in LIKE_GPT2 | _known_to_transformers():
        return []
    if splits in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        return []
    said = f"splits text as {splits!r}, which is not known here" if splits else "splits text in a way it does not name"
    return [
        f"The file's tokenizer {said}; the folder's splits as GPT-2 does, so some text may become other tokens. Put the "
        "original model's tokenizer.json in its place if you can."
    ]


def _known_to_transformers() -> set[str]:
    """The ways to split text that transformers reads from a file."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # older versions read none
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print("usage: python -m secateur.models.from_gguf FILE.gguf FOLDER", file=sys.stderr)
        return 2
    try:
        warnings = write_folder(Path(arguments[0]), Path(arguments[1]))
    except SecateurError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)
    print(f"model folder   {arguments[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
