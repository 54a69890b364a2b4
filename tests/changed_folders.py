"""Changes that make a saved model's folder one of those that people have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import ModelError
from secateur.models.layout import INDEX, WEIGHTS

Change = Callable[[Path], None]
FEW = ["--set", "calibration.samples=4", "--set", "calibration.length=16"]
DENSE = ["--set", "evaluation.enabled=false"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
USUAL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def put(folder: Path, tensors: dict[str, torch.Tensor], name: str = WEIGHTS) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})


def config(**values: Any) -> Change:
    """Set values of config.json; ``...`` takes one out."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | values
        kept = {key: value for key, value in found.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: put(folder, change(load_file(folder / WEIGHTS)))


def sharded(
    pattern: str = "model-{:05d}-of-00002.safetensors", index: str | None = INDEX, decoy: bool = False
) -> Change:
    """Two shards instead of one file; ``decoy``: beside it, and of zeros."""

    def change(folder: Path) -> None:
        found, weight_map = load_file(folder / WEIGHTS), {}
        keys = sorted(found)
        for number, part in enumerate((keys[:9], keys[9:]), start=1):
            put(folder, {key: found[key] * (0 if decoy else 1) for key in part}, pattern.format(number))
            weight_map |= dict.fromkeys(part, pattern.format(number))
        if index:
            content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
            (folder / index).write_text(json.dumps(content))
        if not decoy:
            (folder / WEIGHTS).unlink()

    return change


def moved(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)

    return change


def decoy(name: str) -> Change:
    """Beside the weights, others that are zero."""
    return lambda folder: put(folder, {key: one * 0 for key, one in load_file(folder / WEIGHTS).items()}, name)


def linked(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def wrote(name: str, content: str | bytes = b"x") -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def gone(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def in_index(change: Callable[[dict[str, Any]], Any]) -> Change:
    def changed(folder: Path) -> None:
        found = json.loads((folder / INDEX).read_text())
        change(found)
        (folder / INDEX).write_text(json.dumps(found))

    return changed


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ModelError, match=pattern):
        raise ModelError(text)
