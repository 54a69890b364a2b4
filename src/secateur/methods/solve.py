"""Factorising the inverse of a damped Gram matrix, and what to do when it is singular."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import NumericsError

LADDER_STEP, LADDER_TOP = 10.0, 10.0  # the last rung tried is the first at or past the top


@dataclass(frozen=True)
class InverseFactor:
    """``upper``: U ``[n, n]`` upper triangular with ``U^T U = (H + damping * mean diag H * I)^-1``.

    ``damping`` is the share of the mean diagonal that was finally added; ``condition`` a lower bound of the damped
    matrix's condition number, from the spread of its Cholesky diagonal.
    """

    upper: Tensor
    damping: float
    condition: float


def inverse_factor(hessian: Tensor, damping: float) -> InverseFactor:
    """Factorise the inverse of ``hessian`` ``[n, n]`` fp32 after adding ``damping`` times its mean diagonal.

    With J the reversal of rows and columns and L the Cholesky factor of J H J, U = J L^-1 J: one factorisation and one
    triangular inverse. A matrix that cannot be factorised is tried again with ten times the damping, up to
    ``LADDER_TOP``; beyond, ``NumericsError``. A zero on the diagonal counts as such in the mean, and is then replaced.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    # An input that was always zero is decoupled from the others: any positive diagonal entry will do.
    alive = torch.where(diagonal == 0, torch.where(mean == 0, 1.0, mean), diagonal)
    while True:
        damped = hessian.clone()
        damped.diagonal().copy_(alive + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        diagonal = lower.diagonal()
        if not failed.item() and bool(diagonal.isfinite().all()):
            break
        if damping >= LADDER_TOP:
            raise NumericsError(
                f"The Gram matrix ({hessian.shape[0]} inputs) could not be factorised even with {damping:g} times its mean "
                "diagonal added; its activations are probably not finite or all equal. Use more, or other, calibration data."
            )
        damping = damping * LADDER_STEP if damping else 0.01
    identity = torch.eye(hessian.shape[0], device=hessian.device, dtype=hessian.dtype)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    condition = (diagonal.max() / diagonal.min()).square().item()
    return InverseFactor(inverse.flip(0, 1).contiguous(), damping, condition)
