"""From what the user calls a model to a local folder with its files."""

from __future__ import annotations

import re
from pathlib import Path

from secateur.errors import ModelError

REFERENCE = "reference"
"""The name of the bundled model."""

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def reference_folder() -> Path:
    """Where the bundled reference model lies in the installed package."""
    return Path(__file__).parent / "reference"


def locate_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model given as ``reference``, a local folder, or a Hub id (downloaded once, safetensors only).

    Raises ``ModelError`` when there is no such folder, or the Hub cannot be reached or does not have it.
    """
    if name == REFERENCE:
        return reference_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"The folder {folder} has no config.json, so it is not a Hugging Face model folder.")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            f"There is no model folder {folder}. MODEL is 'reference', a local folder with config.json and safetensors, "
            "or a Hub id such as Qwen/Qwen3-0.6B."
        )
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The model {name!r} is neither a local folder nor could it be fetched from the Hub ({type(error).__name__}: "
            f"{reason}). Check the name and the connection, give a local folder, or try the bundled model: 'reference'."
        ) from error
