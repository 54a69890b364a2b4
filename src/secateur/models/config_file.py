"""config.json and adapter_config.json as files: what they say before transformers reads them, and what to say of a folder
without."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from secateur.errors import ModelError

CONFIG, ADAPTER = "config.json", "adapter_config.json"
NAMED_WEIGHTS = "transformers_weights"
"""The key of config.json that names the file with the weights."""


def config_values(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises ``ModelError`` when it is missing or no JSON object."""
    path = folder / CONFIG
    if not path.is_file():
        raise no_config(folder)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"transformers cannot read {path}: it is no JSON ({error}). Download it again.") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"transformers cannot read {path}: it holds a {type(found).__name__} instead of an object. Download it again."
        )
    return found


def no_config(folder: Path) -> ModelError:
    """What to say of a folder without a config.json."""
    names = {path.name for path in folder.iterdir()} - {CONFIG}
    refuse_adapter(names, f"The folder {folder}", base_model(content_of(folder / ADAPTER)))
    why = f": {why_absent(folder / CONFIG)}" if is_dangling(folder / CONFIG) else ""
    return ModelError(f"The folder {folder} has no {CONFIG}{why}, so it is not a Hugging Face model folder.")


def named_weights(config: bytes) -> Any:
    """What the content of a config.json says under ``transformers_weights``; ``None`` when it says nothing, or cannot be
    read: of what is wrong with it ``config_values`` tells."""
    try:
        found = json.loads(config)
    except ValueError:
        return None
    return found.get(NAMED_WEIGHTS) if isinstance(found, dict) else None


def content_of(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def base_model(adapter: bytes) -> str | None:
    """The model that an adapter is for, by the content of its adapter_config.json."""
    try:
        found = json.loads(adapter)
    except ValueError:
        return None
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    return base if isinstance(base, str) and base else None


def refuse_adapter(names: Collection[str], place: str, base: str | None = None) -> None:
    """Raise ``ModelError`` for an adapter, alone or beside a whole model: where peft is installed, transformers would load
    it too, so what is pruned would not be what is loaded. ``base``: the model that the adapter is for."""
    if ADAPTER not in names:
        return
    of = f" for {base}" if base else ""
    merged = "with peft: PeftModel.merge_and_unload(), then save_pretrained"
    if CONFIG not in names:
        raise ModelError(
            f"{place} holds an adapter{of} ({ADAPTER}), not a model. Merge it into its model first ({merged})."
        )
    raise ModelError(
        f"{place} holds an adapter{of} ({ADAPTER}) beside the model, and transformers loads it with the model where peft is "
        f"installed. Merge it into the model first ({merged}), or take {ADAPTER} out of the folder to go without it."
    )


def links_to_nowhere(folder: Path) -> list[str]:
    """The names in a folder that are links to files which do not exist."""
    return sorted(path.name for path in folder.iterdir() if is_dangling(path))


def is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def why_absent(path: Path) -> str:
    """Why there is no file at ``path``."""
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, which does not exist"
    return "it is a folder" if path.is_dir() else "there is no such file beside it"
