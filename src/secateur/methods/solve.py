"""Factorising a damped Gram matrix from its last input to its first, and what to do when it is singular."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import NumericsError

LADDER_STEP, LADDER_TOP = 10.0, 10.0  # the last rung tried is the first at or past the top


@dataclass(frozen=True)
class Factor:
    """``upper``: V ``[n, n]`` upper triangular with ``V V^T = H + damping * mean diag H * I``.

    ``damping`` is the share of the mean diagonal that was finally added; ``condition`` a lower bound of the damped
    matrix's condition number, from the spread of its Cholesky diagonal.
    """

    upper: Tensor
    damping: float
    condition: float


def factorise(gram: Tensor, damping: float, scale: float = 1.0) -> Factor:
    """Factorise H = ``scale * gram`` ``[n, n]`` fp32 after adding ``damping`` times its mean diagonal.

    With J the reversal of rows and columns and L the Cholesky factor of J H J, V = J L J. A matrix that cannot be factorised is tried again with ten times the damping, up to
    ``LADDER_TOP``; beyond, ``NumericsError``. A zero on the diagonal counts as such in the mean, and is then replaced.
    Cost: n^3 / 3 FLOPs, 8 * n^2 bytes beside ``gram``, which is not changed.
    """
    diagonal = gram.diagonal() * scale
    mean = diagonal.mean()
    # An input that was always zero is decoupled from the others: any positive diagonal entry will do.
    alive = torch.where(diagonal == 0, torch.where(mean == 0, 1.0, mean), diagonal)
    while True:
        lower = gram.flip(0, 1).mul_(scale)
        lower.diagonal().copy_((alive + damping * mean).flip(0))
        lower, failed = torch.linalg.cholesky_ex(lower)
        diagonal = lower.diagonal()
        if not failed.item() and bool(diagonal.isfinite().all()):
            break
        if damping >= LADDER_TOP:
            raise NumericsError(
                f"The Gram matrix ({gram.shape[0]} inputs) could not be factorised even with {damping:g} times its mean "
                "diagonal added; its activations are probably not finite or all equal. Use more, or other, calibration data."
            )
        damping = damping * LADDER_STEP if damping else 0.01
    condition = (diagonal.max() / diagonal.min()).square().item()
    return Factor(lower.flip(0, 1), damping, condition)
