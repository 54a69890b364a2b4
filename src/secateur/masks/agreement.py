"""How far masks agree: which pruned positions several masks of one weight share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLUMNS_AT_ONCE = 2**20  # counts below 2^24 are exact in fp32


def shared_counts(masks: Sequence[Tensor]) -> Tensor:
    """How many positions both of two masks prune, ``[masks, masks]`` fp64; each one's own count on the diagonal.

    ``masks``: bool (True = kept) of one shape. Cost: 2 * masks^2 FLOPs a weight, as one matrix product.
    """
    found = torch.zeros(len(masks), len(masks), dtype=torch.float64)
    flat = [mask.reshape(-1) for mask in masks]
    for start in range(0, flat[0].numel(), COLUMNS_AT_ONCE):
        pruned = torch.stack([~mask[start : start + COLUMNS_AT_ONCE] for mask in flat]).float()
        found += (pruned @ pruned.T).double().cpu()
    return found


def jaccard(shared: Tensor) -> Tensor:
    """``|A and B| / |A or B|`` of the pruned positions from ``shared_counts``, ``[masks, masks]`` fp64; 1 where neither
    prunes anything."""
    own = shared.diagonal()
    either = own[:, None] + own - shared
    return torch.where(either > 0, shared / either.clamp(min=1), 1.0)


def agreement(shared: Tensor, total: int) -> Tensor:
    """The share of all ``total`` positions that both masks keep or both prune, ``[masks, masks]`` fp64."""
    own = shared.diagonal()
    return (total - own[:, None] - own + 2 * shared) / total


def chance_jaccard(sparsity: float) -> float:
    """The Jaccard index expected of two independent masks of this sparsity: ``s / (2 - s)``, for many weights."""
    return sparsity / (2 - sparsity)
