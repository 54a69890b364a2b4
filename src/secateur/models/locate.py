"""From what the user calls a model to a local folder with its files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from secateur.errors import ModelError

REFERENCE = "reference"
"""The name of the bundled model."""

DECIDING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files besides the weights that can change what a model reads or writes."""

LONGEST_REASON = 160

GGUF = b"GGUF"
"""What every GGUF file begins with."""

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def reference_folder() -> Path:
    """Where the bundled reference model lies in the installed package."""
    return Path(__file__).parent / "reference"


def locate_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model given as ``reference``, a local folder, or a Hub id (downloaded once, safetensors only).

    Raises ``ModelError`` when there is no such folder, when it is a file or has GGUF files only (saying how to make a folder
    of one), or when the Hub cannot be reached or does not have it.
    """
    if name == REFERENCE:
        return reference_folder()
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ModelError(_of_a_file(folder))
    if folder.is_dir():
        _refuse_gguf_alone(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"The folder {folder} has no config.json, so it is not a Hugging Face model folder.")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            f"There is no model folder {folder}{_meant(name)} MODEL is 'reference', a local folder with config.json and "
            "safetensors, or a Hub id such as Qwen/Qwen3-0.6B."
        )
    return _download(name, revision)


def is_gguf(file: Path) -> bool:
    """Whether this is a file that begins as every GGUF file does."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(GGUF)) == GGUF
    except OSError:
        return False


def _of_a_file(file: Path) -> str:
    """What to do when MODEL is a file."""
    if is_gguf(file):
        return f"MODEL is a folder with config.json and safetensors, and {file} is a GGUF file. {_make_folder_of(file)}"
    beside = (file.parent / "config.json").is_file()
    advice = f"Give the folder: {file.parent}" if beside else "Give such a folder, or a Hub id such as Qwen/Qwen3-0.6B"
    return f"MODEL is a folder with config.json and safetensors, and {file} is a file. {advice}."


def _refuse_gguf_alone(folder: Path) -> None:
    """Raise ``ModelError`` for a folder whose only weights are in GGUF files."""
    if any(folder.glob("*.safetensors")):
        return
    files = [file for file in sorted(folder.glob("*.gguf")) if is_gguf(file)]
    if files:
        more = f" (and {len(files) - 1} more like it)" if files[1:] else ""
        raise ModelError(
            f"The folder {folder} has no safetensors, only the GGUF file {files[0].name}{more}. {_make_folder_of(files[0])}"
        )


def _make_folder_of(file: Path) -> str:
    return (
        f"Make a model folder of it first: `pip install gguf`, then `python -m secateur.models.from_gguf {file} FOLDER`, and "
        "give that FOLDER."
    )


def _meant(name: str) -> str:
    """The end of a sentence about a name that is none: the bundled model, if that is near."""
    near = difflib.get_close_matches(name.lower(), [REFERENCE], cutoff=0.6)
    return f"; did you mean {REFERENCE!r} (the bundled model)?" if near else "."


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:
        raise ModelError(
            f"There is no folder {name!r}{_meant(name)} As a Hub id it could not be fetched: {_reason(error)}. Check the name "
            "and the connection, give a local folder, or try the bundled model: 'reference'."
        ) from error


def _reason(error: Exception) -> str:
    """What kept a model from being fetched, without the Hub's advice."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "the Hub gives it only to those who asked for access (and logged in with `hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no model of this name, or it is private"
    first = re.split(r"[.:;]?\s*\n|\.\s|, and ", str(error).strip(), maxsplit=1)[0].removeprefix("Got: ").rstrip(".")
    return (first or type(error).__name__)[:LONGEST_REASON]
