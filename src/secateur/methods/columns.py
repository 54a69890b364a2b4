"""SparseGPT's column loop over one block of columns: compiled where numba is installed, in torch elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.masks import Pattern
from secateur.masks.selection import keep_highest

SUB_BLOCK = 16


def eliminate_block(w: Tensor, upper: Tensor, keep: Tensor, pattern: Pattern) -> Tensor:
    """Prune the columns ``w`` ``[width, out]`` fp32 one after another, updating those after each; both in place.

    ``upper`` ``[width, width]``: the block's part of the inverse's factor U. ``keep`` ``[width, out]`` bool: the mask,
    filled in here at the start of each group for an N:M pattern. Column j has the error ``e_j = w_j / U_jj`` where it is
    pruned, and every later column k loses ``U_jk e_j``. Returns the errors ``[width, out]``.
    Cost: width * out * (width + 1) FLOPs.
    """
    errors = torch.empty_like(w)
    kernel = _compiled() if w.device.type == "cpu" else _triton() if w.device.type == "cuda" else None
    if kernel is not None:
        kernel(w, upper.contiguous(), keep, pattern, errors)
    else:
        eliminate_in_torch(w, upper, keep, pattern, errors)
    return errors


def eliminate_in_torch(w: Tensor, upper: Tensor, keep: Tensor, pattern: Pattern, errors: Tensor) -> None:
    """The loop in torch, left-looking in sub-blocks so that most updates are matrix products."""
    width, unit = len(w), pattern.group or 1
    sub = max(unit, SUB_BLOCK // unit * unit)
    for low in range(0, width, sub):
        high = min(low + sub, width)
        w[low:high].addmm_(upper[:low, low:high].T, errors[:low], alpha=-1)
        _eliminate_sub_block(w, upper, keep, errors, low, high, pattern)


def _eliminate_sub_block(
    w: Tensor, u: Tensor, keep: Tensor, errors: Tensor, low: int, high: int, pattern: Pattern
) -> None:
    """Columns ``low`` to ``high`` of a block, one after another; those from ``current`` on wait for their update."""
    diagonal, current = u.diagonal(), low
    for column in range(low, high):
        if pattern.keep is not None and pattern.group is not None and (column - low) % pattern.group == 0:
            end = column + pattern.group
            w[column:end].addmm_(u[low:column, column:end].T, errors[low:column], alpha=-1)
            scores = (w[column:end] / diagonal[column:end, None]).square()
            keep[column:end] = keep_highest(scores.T, pattern.group - pattern.keep).T
            current = column
        if column > current:
            w[column].addmv_(errors[current:column].T, u[current:column, column], alpha=-1)
        torch.mul(w[column], ~keep[column], out=errors[column])
        errors[column] /= diagonal[column]
        w[column].masked_fill_(~keep[column], 0)


@cache
def _triton() -> Any:
    """The Triton kernel's front, or ``None`` where Triton is not installed."""
    try:
        return import_module("secateur.methods.triton_columns").eliminate
    except ImportError:
        return None


@cache
def _compiled() -> Any:
    """The numba kernel's front, or ``None`` where numba is not installed."""
    try:
        numba_columns = import_module("secateur.methods.numba_columns")
    except ImportError:
        return None
    kernel, tile = numba_columns.eliminate_tile, numba_columns.TILE

    def run(w: Tensor, upper: Tensor, keep: Tensor, pattern: Pattern, errors: Tensor) -> None:
        arrays = [tensor.numpy() for tensor in (w, upper, keep, errors)]
        group, drop = (pattern.group, pattern.group - pattern.keep) if pattern.group and pattern.keep else (4, 0)
        outputs = w.shape[1]
        threads = max(1, min(torch.get_num_threads(), outputs // tile))
        edges = [outputs * part // threads for part in range(threads + 1)]
        if threads == 1:
            kernel(*arrays, group, drop, 0, outputs)
            return
        with ThreadPoolExecutor(threads) as pool:
            parts = [pool.submit(kernel, *arrays, group, drop, *edge) for edge in pairwise(edges)]
            for part in parts:
                part.result()

    return run


def block_mask(w: Tensor, diagonal: Tensor, drop: int) -> Tensor:
    """The mask ``[width, out]`` that drops the ``drop`` lowest scores ``(w / diagonal)^2`` of a whole block.

    Ties are broken row by row, then by input, as for every other method.
    """
    scores = (w / diagonal[:, None]).square_()
    total = scores.numel()
    if 0 < drop < total and scores.device.type == "cpu":
        threshold = float(np.partition(scores.numpy().reshape(-1), drop - 1)[drop - 1])
        keep = scores > threshold
        if total - int(keep.count_nonzero()) == drop:
            return keep
    return keep_highest(scores.T.reshape(1, -1), drop).reshape(w.shape[1], w.shape[0]).T
