"""The column loop of ``methods.columns`` compiled by numba: one tile of outputs at a time, kept in the core's cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

TILE = 256
"""Outputs of a tile."""


@njit(cache=True, nogil=True, fastmath={"contract"})
def eliminate_tile(
    w: Any, upper: Any, keep: Any, errors: Any, group: int, drop: int, first: int, last: int
) -> None:  # pragma: no cover - compiled
    """Columns ``w`` ``[width, out]`` of the outputs ``first`` to ``last``; the arrays are those of ``eliminate_block``.

    ``group`` columns at a time take in the errors of all before them. ``drop`` > 0: the lowest ``drop`` scores of each
    group and output are then marked in ``keep``. Last come the updates within the group.
    """
    width = w.shape[0]
    error = np.empty((width, TILE), np.float32)
    current = np.empty((group, TILE), np.float32)
    score = np.empty((group, TILE), np.float32)
    rank = np.empty((group, TILE), np.int32)
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        for low in range(0, width, group):
            high = min(low + group, width)
            for column in range(low, high):
                value = current[column - low]
                for o in range(count):
                    value[o] = w[column, start + o]
                whole = low // 4 * 4
                for k in range(0, whole, 4):
                    u0, u1 = upper[k, column], upper[k + 1, column]
                    u2, u3 = upper[k + 2, column], upper[k + 3, column]
                    e0, e1, e2, e3 = error[k], error[k + 1], error[k + 2], error[k + 3]
                    for o in range(TILE):
                        value[o] -= u0 * e0[o] + u1 * e1[o] + u2 * e2[o] + u3 * e3[o]
                for k in range(whole, low):
                    u0 = upper[k, column]
                    e0 = error[k]
                    for o in range(TILE):
                        value[o] -= u0 * e0[o]
            if drop > 0:
                for one in range(high - low):
                    scale = np.float32(1) / upper[low + one, low + one]
                    for o in range(TILE):
                        score[one, o] = (current[one, o] * scale) ** 2
                        rank[one, o] = 0
                for one in range(high - low):
                    for other in range(one):
                        for o in range(TILE):
                            above = score[one, o] >= score[other, o]  # of equal scores the lower index goes first
                            rank[one, o] += above
                            rank[other, o] += not above
                for one in range(high - low):
                    for o in range(count):
                        keep[low + one, start + o] = rank[one, o] >= drop
            for column in range(low, high):
                value = current[column - low]
                for k in range(low, column):
                    u0 = upper[k, column]
                    e0 = error[k]
                    for o in range(TILE):
                        value[o] -= u0 * e0[o]
                diagonal = upper[column, column]
                for o in range(count):
                    kept = keep[column, start + o]
                    error[column, o] = np.float32(0) if kept else value[o] / diagonal
                    errors[column, start + o] = error[column, o]
                    w[column, start + o] = value[o] if kept else np.float32(0)
                for o in range(count, TILE):
                    error[column, o] = 0
