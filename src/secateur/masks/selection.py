"""From scores to a mask with exactly the asked number of weights, and one rule for ties."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.masks.pattern import Pattern

Group = Literal["row", "matrix"]
"""Which weights compete when unstructured: those of one output row, or of the whole matrix."""
SMALL_GROUP = 16


def check_group(group: str) -> None:
    """Raises ``UsageError`` unless ``group`` is one of ``Group``: a mask from any other would be a guess."""
    if group not in get_args(Group):
        raise UsageError(f"Weights are compared within a 'row' or the 'matrix'; found group {group!r}.")


def pruned_count(total: int, sparsity: float) -> int:
    """Weights to prune of ``total``: the floor, as the reference programs take it, safe against 0.29 * 100 = 28.99…"""
    return min(total, math.floor(total * sparsity + 1e-9))


def keep_mask(scores: Tensor, pattern: Pattern, sparsity: float, group: Group = "row") -> Tensor:
    """The mask ``[out, in]`` (bool, True = kept) that drops the lowest ``scores`` ``[out, in]``.

    Exactly ``pruned_count`` weights go in every comparison group: a row, the whole matrix, or (N:M) each M
    consecutive inputs of a row, where exactly N stay. Of equal scores the one with the lower index goes first.
    """
    if pattern.keep is not None and pattern.group is not None:
        pattern.check_width(scores.shape[1], "a weight matrix")
        grouped = scores.reshape(-1, pattern.group)
        return keep_highest(grouped, pattern.group - pattern.keep).reshape(scores.shape)
    rows = scores if group == "row" else scores.reshape(1, -1)
    return keep_highest(rows, pruned_count(rows.shape[1], sparsity)).reshape(scores.shape)


def keep_highest(scores: Tensor, drop: int) -> Tensor:
    """Mask (True = kept) that drops exactly ``drop`` lowest entries of every row of ``scores`` ``[rows, n]``."""
    if drop <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if drop >= scores.shape[1]:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.shape[1] <= SMALL_GROUP:
        return _keep_by_rank(scores, drop)
    threshold = _smallest(scores, drop)
    keep = scores > threshold
    # No row can keep more than its share, so the total tells whether ties left any row short; NumPy counts fastest.
    if keep.device.type == "cpu" and np.count_nonzero(keep.numpy()) == len(keep) * (scores.shape[1] - drop):
        return keep
    excess = scores.shape[1] - drop - keep.sum(dim=1, dtype=torch.int32)
    tied_rows = (excess != 0).nonzero().flatten()
    if len(tied_rows):
        # Of the ties, the last ones stay: those whose rank among the ties exceeds their number less the room.
        ties = scores[tied_rows] == threshold[tied_rows]
        rank = ties.cumsum(dim=1)
        keep[tied_rows] |= ties & (rank > (rank[:, -1] - excess[tied_rows])[:, None])
    return keep


def _smallest(scores: Tensor, rank: int) -> Tensor:
    """The ``rank``-th smallest (from 1) of every row, ``[rows, 1]``."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        # NumPy's vectorised partial sort takes an eighth of the time of torch's on one thread.
        chosen = np.partition(scores.numpy(), rank - 1, axis=1)[:, rank - 1 : rank]
        return torch.from_numpy(np.ascontiguousarray(chosen))
    return scores.kthvalue(rank, dim=1, keepdim=True).values


def _keep_by_rank(scores: Tensor, drop: int) -> Tensor:
    """``keep_highest`` for short rows: how many of its row each entry exceeds, counted pair by pair."""
    columns = scores.T.contiguous()
    width = len(columns)
    ranks = torch.zeros_like(columns, dtype=torch.uint8)
    for one in range(width):
        for other in range(one):
            above = columns[one] >= columns[other]  # of equal scores the lower index goes first
            ranks[one] += above
            ranks[other] += ~above
    return (ranks >= drop).T.contiguous()
