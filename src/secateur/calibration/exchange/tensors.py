"""A torch file of token ids, as GPTQ, SparseGPT and Wanda programs cache their calibration examples."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.calibration.exchange.base import Format, Row
from secateur.errors import CalibrationError, UsageError


class Tensors(Format):
    """A tensor ``[samples, length]``, a list of tensors, of dicts with ``input_ids``, or of ``(input, target)`` pairs.

    Read only, and by ``weights_only``: a file that could run code is refused.
    """

    suffixes = (".pt", ".pth")
    writes = False

    def write(self, rows: Sequence[Row], place: Path) -> None:
        raise UsageError("Nothing is written as a torch file; parquet, jsonl and hf hold the same, safely.")

    def read(self, place: Path) -> Iterator[tuple[str, Row]]:
        import torch

        try:
            found = torch.load(place, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise CalibrationError(
                f"{place} cannot be loaded without the danger of running what is in it (torch.load, weights_only): "
                f"{' '.join(str(error).split())[:160]}. Save plain tensors, or a list of them, or use parquet or jsonl."
            ) from error
        entries = found if isinstance(found, list | tuple) and not _is_pair(found) else [found]
        for number, entry in enumerate(entries, 1):
            where = f"{place.name}, entry {number:,},"
            yield where, self._row(entry, where)

    def _row(self, entry: Any, where: str) -> Row:
        import torch

        if isinstance(entry, Mapping):
            return entry
        if _is_pair(entry):  # the target of (input, target) is the same ids, masked
            entry = entry[0]
        if isinstance(entry, torch.Tensor):
            return {"input_ids": entry}
        raise CalibrationError(
            f"{where} is a {type(entry).__name__}; a tensor of ids, a dict with input_ids, or a pair of tensors is needed."
        )


def _is_pair(entry: Any) -> bool:
    import torch

    return isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(part, torch.Tensor) for part in entry)
