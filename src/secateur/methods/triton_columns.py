"""The column loop of ``methods.columns`` as a Triton kernel: a program keeps its outputs on chip for all columns.

Importing this needs Triton; it is imported only for weights on a CUDA device. With ``TRITON_INTERPRET=1`` set before
Triton is imported, the kernel runs on the CPU, slowly: so it is tested.
"""

# Kernels are written in Triton's language, which only looks like Python to a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from secateur.masks import Pattern

TILE = 16  # outputs of a program: with 128 columns, 64 numbers for each thread of its one warp


def eliminate(w: Tensor, upper: Tensor, keep: Tensor, pattern: Pattern, errors: Tensor) -> None:
    """Prune the columns ``w`` ``[width, out]`` fp32 in place; the arguments are those of ``columns.eliminate_block``.

    ``upper`` ``[width, width]`` fp32 is read, ``keep`` ``[width, out]`` bool read, or written for an N:M pattern (of equal
    scores the lower index goes first), ``errors`` ``[width, out]`` fp32 written. The last dimension of each is contiguous.
    A column's error is taken off all later ones at once, where the torch loop sums several first: the results
    differ by rounding. Cost: 5 * width^2 * out operations on chip (7 for N:M), and ``w``, ``keep`` and ``errors`` pass
    through memory once, ``upper`` from the cache once a program.
    """
    width, outputs = w.shape
    group, drop = (pattern.group, pattern.group - pattern.keep) if pattern.group and pattern.keep else (1, 0)
    assert width % group == 0, f"a block of {width} columns does not divide into groups of {group}"
    for tensor in (w, upper, keep, errors):
        assert tensor.stride(1) == 1, "rows must be contiguous"
    _kernel[(triton.cdiv(outputs, TILE),)](
        w,
        upper,
        keep,
        errors,
        width,
        outputs,
        w.stride(0),
        upper.stride(0),
        keep.stride(0),
        errors.stride(0),
        COLUMNS=triton.next_power_of_2(width),
        OUTPUTS=TILE,
        GROUP=group,
        SLOTS=triton.next_power_of_2(group),
        DROP=drop,
        num_warps=1,
    )


# Triton takes annotations for its own types, so there are none but its constants'.
@triton.jit
def _kernel(  # noqa: ANN202
    w,  # noqa: ANN001
    upper,  # noqa: ANN001
    keep,  # noqa: ANN001
    errors,  # noqa: ANN001
    width,  # noqa: ANN001
    outputs,  # noqa: ANN001
    w_stride,  # noqa: ANN001
    upper_stride,  # noqa: ANN001
    keep_stride,  # noqa: ANN001
    errors_stride,  # noqa: ANN001
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    DROP: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    slot = tl.arange(0, SLOTS)
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = output < outputs
    inside = (column < width)[:, None] & there[None, :]
    places = column[:, None].to(tl.int64) * w_stride + output[None, :]
    tile = tl.load(w + places, mask=inside, other=0.0)
    for low in range(0, width, GROUP):
        rank = tl.zeros([SLOTS, OUTPUTS], dtype=tl.int32)
        if DROP > 0:
            scores = tl.zeros([SLOTS, OUTPUTS], dtype=tl.float32)
            for member in tl.static_range(GROUP):
                value = tl.sum(tl.where(column[:, None] == low + member, tile, 0.0), axis=0)
                value = value / tl.load(upper + (low + member) * (upper_stride + 1))
                scores = tl.where(slot[:, None] == member, (value * value)[None, :], scores)
            for member in tl.static_range(GROUP):
                score = tl.sum(tl.where(slot[:, None] == member, scores, 0.0), axis=0)[None, :]
                rank += ((score < scores) | ((score == scores) & (slot[:, None] > member))).to(tl.int32)
        for member in range(GROUP):
            current = low + member
            here = column[:, None] == current
            place = keep + current * keep_stride + output
            if DROP > 0:
                kept = tl.sum(tl.where(slot[:, None] == member, rank, 0), axis=0) >= DROP
                tl.store(place, kept, mask=there)
            else:
                kept = tl.load(place, mask=there, other=1) != 0
            value = tl.sum(tl.where(here, tile, 0.0), axis=0)
            error = tl.where(kept, 0.0, value / tl.load(upper + current * (upper_stride + 1)))
            tl.store(errors + current * errors_stride + output, error, mask=there)
            row = tl.load(
                upper + current * upper_stride + column, mask=(column > current) & (column < width), other=0.0
            )
            tile = tl.where(here & (~kept)[None, :], 0.0, tile - row[:, None] * error[None, :])
    tl.store(w + places, tile, mask=inside)
