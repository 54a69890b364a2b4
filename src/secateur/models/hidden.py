"""Hidden states of the calibration batches, in memory up to a budget and in files beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

PREFIX = ".hidden-"
"""How the name of a folder with hidden states begins."""


class HiddenStates:
    """One tensor ``[batch, length, width]`` a calibration batch; a list that may lie partly on disk.

    The batches that fit ``budget`` bytes together stay in memory (``None``: all of them); each of the others has a file
    under ``folder`` (``None``: the system's temporary folder), which goes when this object does. What is read back is
    bit-identical to what was put in.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self.budget = budget
        self._folder = folder
        self._kept: dict[int, Tensor] = {}
        self._spilled: dict[int, tuple[torch.dtype, torch.Size, torch.device]] = {}
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._kept) + len(self._spilled)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        dtype, shape, device = self._spilled[index]
        raw = torch.empty(shape, dtype=dtype)
        with self._file(index).open("rb") as stream:
            stream.readinto(_bytes(raw))
        return raw.to(device)

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        if index not in self._spilled and self._fits(index, hidden):
            self._kept[index] = hidden
            return
        self._kept.pop(index, None)
        self._spilled[index] = (hidden.dtype, hidden.shape, hidden.device)
        with self._file(index).open("wb") as stream:
            stream.write(_bytes(hidden.cpu().contiguous()))

    def __delitem__(self, index: int) -> None:
        """Forget what is held in memory for a batch, if anything is."""
        self._kept.pop(index, None)

    def on_disk(self, index: int) -> bool:
        return index in self._spilled

    def close(self) -> None:
        """Let go of everything, files included."""
        self._kept.clear()
        self._spilled.clear()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def append(self, hidden: Tensor) -> None:
        self[len(self)] = hidden

    @property
    def spilled_bytes(self) -> int:
        """Bytes that lie on disk."""
        return sum(shape.numel() * dtype.itemsize for dtype, shape, _ in self._spilled.values())

    def _fits(self, index: int, hidden: Tensor) -> bool:
        if self.budget is None:
            return True
        others = sum(kept.nbytes for key, kept in self._kept.items() if key != index)
        return others + hidden.nbytes <= self.budget

    def _file(self, index: int) -> Path:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._folder)
        return Path(self._directory.name) / f"{index}.bin"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
