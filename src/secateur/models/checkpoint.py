"""A folder of safetensors files, read one tensor at a time and patched in place.

Secateur never holds a whole model: it copies the checkpoint's own files and overwrites the bytes of the tensors it
pruned. Every other byte, the sharding and the file headers stay as they were (docs/decisions/0002).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
OWN_FILES = {"README.md", "manifest.json", "training.json", "pruning.jsonl", "survey.jsonl"}


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes lie in its file."""

    file: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a model folder by name. Raises ``ModelError`` when files are missing, truncated or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.files = self._find_files()
        self._places: dict[str, _Place] = {}
        self._touched: set[str] = set()
        for file in self.files:
            self._places |= self._read_header(file)

    def _find_files(self) -> list[str]:
        """The single file if there is one, as transformers does, else the shards that the index names."""
        if (self.folder / WEIGHTS).is_file():
            return [WEIGHTS]
        if not (self.folder / INDEX).is_file():
            others = sorted(path.name for path in self.folder.glob("*") if path.suffix in OTHER_WEIGHTS)
            found = f"it has {', '.join(others[:3])}, which Secateur does not read" if others else "it has no weights"
            raise ModelError(
                f"The model folder {self.folder} has no {WEIGHTS} and no {INDEX}; {found}. Save it again with "
                "save_pretrained (safetensors)."
            )
        try:
            files = sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"The index {self.folder / INDEX} is damaged ({error!r}); download it again.") from error
        for file in files:
            if Path(file).name != file or not (self.folder / file).is_file():
                raise ModelError(
                    f"{self.folder / INDEX} names {file}, but there is no such file beside it; download it again."
                )
        return files

    def _read_header(self, file: str) -> dict[str, _Place]:
        path = self.folder / file
        try:
            with safe_open(path, framework="pt"):  # checks the header against the file's length
                pass
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"The weight file {path} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}. "
                "Download or save it again."
            ) from error
        header.pop("__metadata__", None)
        return {
            name: _Place(
                file,
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
                entry["dtype"],
                tuple(entry["shape"]),
            )
            for name, entry in header.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    @property
    def parameters(self) -> int:
        """Stored numbers, all tensors together."""
        return sum(torch.Size(place.shape).numel() for place in self._places.values())

    @property
    def bytes(self) -> int:
        return sum((self.folder / file).stat().st_size for file in self.files)

    def dtype(self) -> torch.dtype:
        """The floating dtype that most of the stored bytes have."""
        sizes: dict[str, int] = {}
        for place in self._places.values():
            sizes[place.dtype] = sizes.get(place.dtype, 0) + place.stop - place.start
        known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
        floating = {name: size for name, size in sizes.items() if name in known}
        if not floating or max(sizes, key=sizes.__getitem__) not in known:
            raise ModelError(
                f"The weights in {self.folder} are stored as {', '.join(sorted(sizes))}; Secateur prunes fp32, bf16 and "
                "fp16 weights. Quantised checkpoints cannot be pruned."
            )
        return known[max(floating, key=floating.__getitem__)]

    def read(self, name: str, part: tuple[int | slice, ...] = ()) -> Tensor:
        """One tensor, or a part of it by its index, on the CPU, as stored."""
        with safe_open(self.folder / self._places[name].file, framework="pt") as file:
            if not part:
                return file.get_tensor(name)
            first, *others = part  # files are cut along the first dimension only
            rows = (
                file.get_slice(name)[first : first + 1][0] if isinstance(first, int) else file.get_tensor(name)[first]
            )
            return rows[tuple(others)] if isinstance(first, int) else rows[(slice(None), *others)]

    def patch(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite tensors in place; each must have the shape and dtype it is stored with. Durable after ``sync``."""
        for name, tensor in tensors.items():
            place = self._places[name]
            raw = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1).data
            if len(raw) != place.stop - place.start or tuple(tensor.shape) != place.shape:
                raise ModelError(
                    f"{name} is stored as {place.dtype} {place.shape}; it cannot become {tensor.dtype} {tuple(tensor.shape)}."
                )
            with (self.folder / place.file).open("r+b") as stream:
                stream.seek(place.start)
                stream.write(raw)
            self._touched.add(place.file)

    def sync(self) -> None:
        """Wait until everything patched so far is on the disk."""
        while self._touched:
            file = self._touched.pop()
            with (self.folder / file).open("r+b") as stream:
                os.fsync(stream.fileno())

    def copy_to(self, folder: Path) -> Checkpoint:
        """Copy the weights and what else makes a model folder (configuration, tokenizer, licence); the copy's checkpoint.

        Weights in other formats or under other names would be left unpruned; they and an earlier run's records stay
        behind, as do sub-folders.
        """
        folder.mkdir(parents=True, exist_ok=True)
        index = {INDEX} if WEIGHTS not in self.files else set()
        for path in sorted(self.folder.iterdir()):
            weights = path.suffix in {*OTHER_WEIGHTS, ".safetensors"} or path.name.endswith(".safetensors.index.json")
            wanted = path.name in {*self.files, *index} or not (
                weights or path.name in OWN_FILES or path.name.startswith(".")
            )
            if path.is_file() and wanted:
                shutil.copyfile(path, folder / path.name)
        return Checkpoint(folder)
