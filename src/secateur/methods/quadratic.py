"""The output error of a linear as a quadratic in the weights: its scale, its proximal step, and its minimum for a fixed mask.

With G the Gram matrix of the inputs and A = G + damping * mean diag(G) * I, what is minimised over the kept weights is
``tr((W_hat - W) A (W_hat - W)^T)``: the damping draws them to their dense values, not to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import NumericsError
from secateur.statistics import Gram


@dataclass(frozen=True)
class Scale:
    """``root``: square roots of A's diagonal ``[in]`` (1 where that is zero); ``shift``: what was added to G's; ``dead``:
    inputs that were zero at every token."""

    root: Tensor
    shift: Tensor
    dead: Tensor


def scale_of(gram: Gram, damping: float) -> Scale:
    """The scale of A, from the sums over tokens: a common factor of G changes no solution."""

    def make() -> Scale:
        diagonal = gram.matrix.diagonal()
        shift = damping * diagonal.mean()
        damped = diagonal + shift
        return Scale(torch.where(damped > 0, damped, 1).sqrt(), shift, diagonal == 0)

    return gram.derive(("scale", damping), make)


def proximal_inverse(gram: Gram, damping: float, rho: float) -> Tensor:
    """``(R^-1 A R^-1 + rho I)^-1`` ``[in, in]`` fp32 with R = diag(scale.root): A with a diagonal of ones, shifted.

    By Cholesky: in^3 FLOPs, and three matrices ``[in, in]`` at the peak. An eigendecomposition would serve every rho, but
    takes as long as five of these, and doubles the cost of each product with the inverse.
    """
    scale = scale_of(gram, damping)
    shifted = gram.matrix / scale.root
    shifted /= scale.root[:, None]
    shifted.diagonal().fill_(1 + rho)
    lower, failed = torch.linalg.cholesky_ex(shifted)
    del shifted
    if failed.item() or not bool(lower.diagonal().isfinite().all()):
        raise NumericsError(
            f"The Gram matrix ({gram.inputs} inputs) could not be factorised with {damping:g} times its mean diagonal added; "
            "its activations are probably not finite. Use other calibration data, or a higher damping."
        )
    return torch.cholesky_inverse(lower)


@dataclass(frozen=True)
class Fit:
    """``weight`` ``[out, in]``; ``iterations`` taken; ``residual``: the largest relative residual left of any row."""

    weight: Tensor
    iterations: int
    residual: float


def fit_kept(
    gram: Gram, damping: float, dense: Tensor, mask: Tensor, start: Tensor, iterations: int, tolerance: float
) -> Fit:
    """The kept weights that minimise the output error, every row at once, by preconditioned conjugate gradients.

    ``dense``, ``mask``, ``start`` ``[out, in]``; ``start`` is zero outside the mask. The preconditioner is A's diagonal D.
    A row is done when its residual r has ``r D^-1 r^T <= tolerance^2 * w D w^T``. No copy of the Gram is made: a step is
    one product of a matrix ``[rows, in]`` with it, 2 * rows * in^2 FLOPs, for the rows still to do.
    """
    scale = scale_of(gram, damping)
    diagonal = scale.root.square()
    fitted = start.clone()
    error = dense - start
    residual = torch.addmm(error * scale.shift, error, gram.matrix).mul_(mask)
    del error
    limits = (dense.square() @ diagonal).mul_(tolerance**2)
    direction = residual / diagonal
    energy = (residual * direction).sum(dim=1)
    rows = torch.arange(dense.shape[0], device=dense.device)
    kept, weight, left = mask, fitted, energy.clone()
    taken = 0
    for taken in range(iterations + 1):
        going = energy > limits[rows]
        count = int(going.sum())
        if count == 0 or taken == iterations:
            break
        if count <= 0.8 * len(rows):
            if weight is not fitted:
                fitted[rows] = weight
            left[rows] = energy
            rows, energy, kept = rows[going], energy[going], kept[going]
            weight, residual, direction = weight[going], residual[going], direction[going]
        image = torch.addmm(direction * scale.shift, direction, gram.matrix).mul_(kept)
        curvature = (direction * image).sum(dim=1)
        step = torch.where(curvature > 0, energy / curvature, 0)[:, None]
        weight.addcmul_(direction, step)
        residual.addcmul_(image, step, value=-1)
        torch.div(residual, diagonal, out=image)
        before, energy = energy, (residual * image).sum(dim=1)
        direction.mul_(torch.where(before > 0, energy / before, 0)[:, None]).add_(image)
    if weight is not fitted:
        fitted[rows] = weight
    left[rows] = energy
    share = torch.where(limits > 0, left / limits, 0).amax() if len(left) else left.new_zeros(())
    return Fit(fitted, taken, tolerance * float(share.sqrt()))
