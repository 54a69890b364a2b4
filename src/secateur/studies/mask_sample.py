"""A sample of a pruned model's mask, small enough to keep for every cell, and how far two of them agree.

Of each linear the same positions are looked at in every cell. Of ``POSITIONS`` in all, the Jaccard index of two masks has a
standard error of at most 0.5 / sqrt(positions that either prunes): below 1 % (at 95 %) once those are 9,604.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.models.skeleton import Skeleton
from secateur.pruning.records import LinearRecord

POSITIONS, FEWEST = 65536, 512


def sample_masks(folder: Path, records: Sequence[LinearRecord]) -> dict[str, Any]:
    """By linear: ``bits`` (base64, 1 = kept) at fixed positions, and how many ``weights`` they stand for."""
    skeleton, found = Skeleton(folder), {}
    linears = {linear.name: linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)}
    each = max(FEWEST, math.ceil(POSITIONS / max(1, len(records))))
    for record in records:
        linear = linears.get(record.name) or skeleton.head()
        kept = _in_dense_order(skeleton.stored.read(linear.weight) != 0, record).reshape(-1).numpy()
        places = positions(record.name, len(kept), each)
        bits = np.packbits(kept[places])
        found[record.name] = {
            "bits": base64.b64encode(bits.tobytes()).decode(),
            "positions": len(places),
            "weights": record.weights,
        }
    return found


def positions(name: str, size: int, count: int) -> np.ndarray:
    """``count`` different places of ``size`` (all, if there are no more), drawn by the linear's name alone."""
    if count >= size:
        return np.arange(size)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False, shuffle=False))


def _in_dense_order(mask: torch.Tensor, record: LinearRecord) -> torch.Tensor:
    """The mask with its inputs where the dense model has them."""
    if not record.order:
        return mask
    dimension = 0 if record.transposed else mask.ndim - 1
    return mask.index_select(dimension, torch.argsort(torch.tensor(record.order)))


def overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float, int] | None:
    """Jaccard index and agreement of two samples (linears weigh as their numbers of weights), and how many positions were
    looked at; ``None`` when they are not of the same linears."""
    if one.keys() != other.keys() or not one:
        return None
    jaccard = agree = total = 0.0
    looked = 0
    for name, entry in one.items():
        if entry["positions"] != other[name]["positions"]:
            return None
        a, b = _bits(entry), _bits(other[name])
        either = int((~a | ~b).sum())
        jaccard += entry["weights"] * (int((~a & ~b).sum()) / either if either else 1.0)
        agree += entry["weights"] * float((a == b).mean())
        total += entry["weights"]
        looked += len(a)
    return jaccard / total, agree / total, looked


def _bits(entry: Mapping[str, Any]) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(entry["bits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=entry["positions"]).astype(bool)
