"""From what the user calls a model to a local folder with its files."""

from __future__ import annotations

import difflib
import glob
import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from secateur.errors import ModelError
from secateur.models.config_file import CONFIG, named_weights, no_config, refuse_adapter
from secateur.models.layout import INDEX, is_weights, opened_file, repository_layout

REFERENCE = "reference"
"""The name of the bundled model."""

DECIDING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""Files besides the weights that can change what a model reads or writes; ``decides`` knows them, and those in
sub-folders."""

LONGEST_REASON = 160

GGUF = b"GGUF"
"""What every GGUF file begins with."""

HUB_SUFFIXES = {".json", ".model", ".txt", ".jinja", ".py", ".tiktoken", ".bpe"}
"""Endings of the files that are fetched beside the weights, if they go with the model."""

TERMS = ("licen", "notice", "copying", "terms", "use_policy")
"""How the names of files begin that say what may be done with a model; they are fetched whatever they end in."""


def decides(name: str) -> bool:
    """Whether a file beside the weights, by its path in the model, can change what the model reads or writes."""
    return name in DECIDING_FILES or name.endswith(".tiktoken") or name.startswith("additional_chat_templates/")


def reference_folder() -> Path:
    """Where the bundled reference model lies in the installed package."""
    return Path(__file__).parent / "reference"


def locate_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model given as ``reference``, a local folder, or a Hub id (downloaded once: the weights that
    transformers would load, and what goes with them).

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
        if not (folder / CONFIG).is_file():
            raise no_config(folder)
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
        "Make a model folder of it first: `pip install gguf`, then `python -m secateur.models.from_gguf "
        f"{shlex.quote(str(file))} FOLDER`, and give that FOLDER."
    )


def _meant(name: str) -> str:
    """The end of a sentence about a name that is none: the bundled model, if that is near."""
    near = difflib.get_close_matches(name.lower(), [REFERENCE], cutoff=0.6)
    return f"; did you mean {REFERENCE!r} (the bundled model)?" if near else "."


def _download(name: str, revision: str | None) -> Path:
    """The folder in the Hub's cache with the files of a model that are used, those that it lacks fetched.

    What there is to choose from is known from the list of the repository's files, its config.json and its index, so nothing
    is fetched that would not be used. Where the Hub cannot be reached, what the cache has must do.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, INDEX]))
        commit = folder.name
        names = _files_of(name, commit, folder)
        if names is not None:
            wanted = _wanted(name, names, lambda file: _content(name, commit, file))
            snapshot_download(name, revision=commit, allow_patterns=[glob.escape(file) for file in wanted])
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"There is no folder {name!r}{_meant(name)} As a Hub id it could not be fetched: {_reason(error)}. Check the name "
            "and the connection, give a local folder, or try the bundled model: 'reference'."
        ) from error
    return folder


def _files_of(name: str, commit: str, folder: Path) -> list[str] | None:
    """The files of a repository; ``None`` when the Hub cannot be reached, but the cache has weights of it in ``folder``."""
    from huggingface_hub import HfApi

    try:
        return [file.rfilename for file in HfApi().model_info(name, revision=commit).siblings or ()]
    except Exception:
        if not any(is_weights(path.name) for path in folder.rglob("*") if path.name != INDEX):
            raise
        return None


def _content(name: str, commit: str, file: str) -> bytes:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, revision=commit)).read_bytes()


def _wanted(name: str, names: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """Of the files ``names`` of a repository, those that are used. ``read`` gives the content of one. Raises ``ModelError``
    when transformers would load no weights from it."""
    place = f"The model {name} on the Hub"
    refuse_adapter(names, place)
    if CONFIG not in names:
        weights = [file for file in names if is_weights(file)]
        found = f"; it has {', '.join(sorted(weights)[:3])}" if weights else ""
        raise ModelError(f"{place} has no {CONFIG}, so it is not a model that transformers loads{found}.")
    opened = opened_file(names, named_weights(read(CONFIG)), place)
    layout = repository_layout(names, opened, read(opened) if opened.endswith(".json") else None, place)
    return [file for file in layout.files if file in layout.weights or file == layout.index or _goes_along(file)]


def _goes_along(file: str) -> bool:
    """Whether a file that is neither weights nor index is worth fetching: not pictures, logs or data."""
    path = PurePosixPath(file)
    return path.suffix in HUB_SUFFIXES or path.name.lower().startswith(TERMS)


def _reason(error: Exception) -> str:
    """What kept a model from being fetched, without the Hub's advice."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "the Hub gives it only to those who asked for access (and logged in with `hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no model of this name, or it is private"
    first = re.split(r"[.:;]?\s*\n|\.\s|, and ", str(error).strip(), maxsplit=1)[0].removeprefix("Got: ").rstrip(".")
    return (first or type(error).__name__)[:LONGEST_REASON]
