"""A model folder of a GGUF file: ``python -m secateur.models.from_gguf FILE FOLDER``.

GGUF is the single file that llama.cpp reads, mostly quantised. transformers dequantises the weights and rebuilds the
tokenizer; what it leaves to do is here: no weight may stay at random, digits are split as the file says, and the folder
is plain safetensors, without a trace of the quantisation.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from secateur.errors import ModelError, SecateurError, UsageError

MAGIC = b"GGUF"
DTYPE = torch.bfloat16
"""What the weights are written in: nearly every model was published in it, and it takes half of fp32."""

DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Values of ``tokenizer.ggml.pre`` for which llama.cpp splits off every digit and then splits as GPT-2 does."""
LIKE_GPT2 = {"gpt-2", "gpt2", "default", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "trillion"}
"""Values of ``tokenizer.ggml.pre`` for which llama.cpp splits as GPT-2 does, which is what transformers takes then."""


def is_gguf(file: Path) -> bool:
    """Whether this is a file that begins as every GGUF file does."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def write_folder(file: Path, folder: Path, dtype: torch.dtype = DTYPE) -> list[str]:
    """Write the model of a GGUF file as a folder of safetensors with its tokenizer; gives warnings, as sentences.

    ``folder`` must not exist, or be empty; it is complete when it is there. Raises ``UsageError`` for a taken folder and
    without the package gguf, ``ModelError`` for a file that is no GGUF, damaged, or of a kind transformers cannot read.
    """
    file, folder = Path(file).expanduser(), Path(folder).expanduser()
    _check(file, folder)
    from secateur.models.loading import quiet_transformers

    quiet_transformers()
    model, tokenizer = _load(file, dtype)
    warnings = _split_digits(tokenizer, file)
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


def _check(file: Path, folder: Path) -> None:
    if not file.is_file():
        raise ModelError(f"There is no file {file}.")
    if not is_gguf(file):
        raise ModelError(f"{file} is no GGUF file: it does not begin with the letters GGUF.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; name a folder that does not exist yet, or is empty.")
    if find_spec("gguf") is None:
        raise UsageError("Reading GGUF files needs the package gguf: pip install 'secateur[gguf]', or pip install gguf.")


def _load(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
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
    except Exception as error:  # the readers of a damaged file fail in as many ways as there are bytes
        raise ModelError(
            f"transformers cannot read {file} ({file.stat().st_size:,} bytes): {_first_words(error)}. Either the file is "
            "damaged, so download it again; or transformers does not know this kind of model."
        ) from error
    model, info = loaded
    absent = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    if absent:
        raise ModelError(
            f"{file} lacks {len(absent)} of the weights of a {model.config.model_type} model, the first being "
            f"{absent[0]!r}; with random numbers in their place the model would be worthless."
        )
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.hf_quantizer = None
    model.generation_config._from_model_config = False
    return model, tokenizer


def _first_words(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def _split_digits(tokenizer: Any, file: Path) -> list[str]:
    """Mend how a byte-level tokenizer splits digits, which transformers does not read from the file; warnings."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    kind = _text_field(file, "tokenizer.ggml.pre")
    if _text_field(file, "tokenizer.ggml.model") != "gpt2":
        return []
    if kind in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        return []
    if kind in LIKE_GPT2 or kind in getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", {}):
        return []
    return [
        f"The file says that its tokenizer splits text as {kind!r}, which is not known here; text is split as GPT-2 does, "
        "so some of it may become other tokens than with the original tokenizer. Better copy the original's tokenizer files."
    ]


def _text_field(file: Path, key: str) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(file).get_field(key)
    return None if field is None else str(field.contents())


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m secateur.models.from_gguf FILE.gguf FOLDER", file=sys.stderr)
        return 2
    try:
        warnings = write_folder(Path(arguments[0]), Path(arguments[1]))
    except SecateurError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
