"""A folder of safetensors files, read one tensor at a time and patched in place.

Secateur never holds a whole model: it copies the checkpoint's own files and overwrites the bytes of the tensors it
pruned. Every other byte, the sharding and the file headers stay as they were (docs/decisions/0002).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import ModelError
from secateur.models.layout import read_layout

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes that Secateur prunes, by what safetensors calls them."""

LFS_POINTER = b"version https://git-lfs"

QUANTISED_NAMES = re.compile(
    r"(^|[._])(weight|qweight|q_weight|qzeros|weight_packed|packed_weight|weight_q|W_q|blocks|(gate|up|gate_up|down)_proj)$"
)
"""What tensors that hold quantised weights as integers are called, by the last part of their names."""


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
        self.layout = read_layout(self.folder)
        self.files = list(self.layout.weights)
        self._places: dict[str, _Place] = {}
        self._touched: set[str] = set()
        for file in self.files:
            self._add(self._read_header(file))

    def _add(self, places: dict[str, _Place]) -> None:
        for name, place in places.items():
            before = self._places.setdefault(name, place)
            if before is not place:
                raise ModelError(
                    f"{name} is stored twice in {self.folder}: in {before.file} and in {place.file}. Save the model again with "
                    "save_pretrained."
                )

    def _read_header(self, file: str) -> dict[str, _Place]:
        path = self.folder / file
        try:
            with path.open("rb") as stream:
                start = stream.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise ModelError(
                    f"The weight file {path} is a pointer of Git LFS, not the weights themselves. Run 'git lfs pull' where the "
                    "model was cloned, or download it again."
                )
            with safe_open(path, framework="pt"):  # checks the header against the file's length
                pass
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length))
        except OSError as error:
            raise ModelError(f"The weight file {path} cannot be read: {error.strerror or error}.") from error
        except (SafetensorError, ValueError) as error:
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

    def stored_as(self, name: str) -> str:
        """What safetensors calls the dtype of a tensor: F32, BF16, F8_E4M3, I32, ..."""
        return self._places[name].dtype

    @property
    def left_behind(self) -> tuple[str, ...]:
        """What the folder has besides and ``copy_to`` does not copy: weights that transformers does not load, and
        sub-folders (they end in a slash)."""
        return self.layout.left_behind

    @property
    def quantised(self) -> list[str]:
        """The tensors that hold weights as something else than floating-point numbers of 16 bits or more."""
        return [name for name, place in self._places.items() if _is_quantised(name, place)]

    @property
    def parameters(self) -> int:
        """Stored numbers, all tensors together."""
        return sum(torch.Size(place.shape).numel() for place in self._places.values())

    @property
    def bytes(self) -> int:
        return sum((self.folder / file).stat().st_size for file in self.files)

    def dtype(self) -> torch.dtype:
        """The floating dtype that most of the stored floating-point bytes have. Raises ``ModelError`` when there are none
        of fp32, bf16 and fp16."""
        sizes: dict[str, int] = {}
        for place in self._places.values():
            sizes[place.dtype] = sizes.get(place.dtype, 0) + place.stop - place.start
        floating = {name: size for name, size in sizes.items() if name in FLOATS}
        if not floating:
            raise ModelError(
                f"The weights in {self.folder} are stored as {', '.join(sorted(sizes)) or 'nothing at all'}; Secateur reads "
                "fp32, bf16 and fp16 weights. Save the model again in one of these: from_pretrained(..., dtype='float32')."
            )
        return FLOATS[max(floating, key=floating.__getitem__)]

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

        What transformers does not load from the folder would stay unpruned: it is ``left_behind``. An earlier run's
        records are not copied either.
        """
        for file in self.layout.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / file, target)
        return Checkpoint(folder)


def _is_quantised(name: str, place: _Place) -> bool:
    """By its dtype: fewer than 16 bits; or integers under a name that only weights have, and not masks or positions."""
    if place.dtype.startswith(("F4", "F6_", "F8")):
        return True
    integers = place.dtype.startswith(("I", "U"))
    return integers and len(place.shape) > 0 and bool(QUANTISED_NAMES.search(name))
