"""From scores to a mask with exactly the asked number of weights, and one rule for ties."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from secateur.masks.pattern import Pattern

Group = Literal["row", "matrix"]
"""Which weights compete when unstructured: those of one output row, or of the whole matrix."""


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
    threshold = scores.kthvalue(drop, dim=1, keepdim=True).values
    keep = scores > threshold
    excess = (~keep).sum(dim=1) - drop
    tied_rows = excess.nonzero().flatten()
    if len(tied_rows):
        ties = scores[tied_rows] == threshold[tied_rows]
        room = excess[tied_rows]
        # Of the ties, the last `room` stay: those whose rank among the ties exceeds (ties - room).
        rank = ties.cumsum(dim=1)
        keep[tied_rows] |= ties & (rank > (rank[:, -1] - room)[:, None])
    return keep
