"""The masks that the papers' formulas give, written plainly and in fp64: what Secateur's are held against.

Every function takes W ``[out, in]`` and returns a mask ``[out, in]``, True = kept. ``group`` is M of N:M (half of each group
goes), or ``None`` for unstructured.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPARSITY = 0.5
DAMPING, BLOCK = 0.01, 128


def lowest_dropped(scores: Tensor, group: int | None) -> Tensor:
    """Drop the lower half of every row, or of every ``group`` consecutive scores; of equal ones the first."""
    rows = scores if group is None else scores.reshape(-1, group)
    order = rows.argsort(dim=1, stable=True)
    keep = torch.ones_like(rows, dtype=torch.bool)
    keep.scatter_(1, order[:, : int(rows.shape[1] * SPARSITY)], False)
    return keep.reshape(scores.shape)


def magnitude(weight: Tensor, group: int | None) -> Tensor:
    """|W|, compared over the whole matrix: what is left where a linear saw no tokens."""
    scores = weight.double().abs()
    if group is not None:
        return lowest_dropped(scores, group)
    return lowest_dropped(scores.reshape(1, -1), None).reshape(scores.shape)


def wanda(weight: Tensor, gram: Tensor, group: int | None) -> Tensor:
    """|W_ij| * ||x_j||, compared within a row (arXiv 2306.11695)."""
    return lowest_dropped(weight.double().abs() * gram.diagonal().sqrt(), group)


def sparsegpt(weight: Tensor, gram: Tensor, group: int | None) -> Tensor:
    """Column by column; each pruned weight's error is made up for by the columns to its right (arXiv 2301.00774)."""
    w, h = weight.double().clone(), gram.clone()
    outputs, inputs = w.shape
    dead = h.diagonal() == 0
    mean = h.diagonal().mean()
    w[:, dead] = 0
    h.diagonal()[dead] = mean if mean > 0 else 1.0
    h.diagonal().add_(DAMPING * mean)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    keep = torch.ones_like(w, dtype=torch.bool)
    dropped = 0
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        if group is None:
            scores = (w[:, start:stop] / upper.diagonal()[start:stop]).square()
            count = int(stop * outputs * SPARSITY) - dropped
            dropped += count
            order = scores.reshape(-1).argsort(stable=True)[:count]
            block = torch.ones(scores.numel(), dtype=torch.bool)
            block[order] = False
            keep[:, start:stop] = block.reshape(scores.shape)
        for column in range(start, stop):
            if group is not None and column % group == 0:
                span = slice(column, column + group)
                keep[:, span] = lowest_dropped((w[:, span] / upper.diagonal()[span]).square(), group)
            error = torch.where(keep[:, column], 0.0, w[:, column]) / upper[column, column]
            w[:, column:stop] -= error[:, None] * upper[column, column:stop]
            # The columns of later blocks are updated at once: the same as the paper's update after each block.
            w[:, stop:] -= error[:, None] * upper[column, stop:]
            w[:, column].masked_fill_(~keep[:, column], 0.0)
    return keep
