"""SparseGPT: prune column by column, and let the columns to the right make up for the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.masks import Pattern
from secateur.masks.selection import keep_highest, pruned_count
from secateur.methods.base import Method, Pruned
from secateur.methods.solve import inverse_factor
from secateur.statistics import Gram, InputStatistics, Statistic

SUB_BLOCK = 16


@dataclass(frozen=True)
class SparseGPT(Method):
    """Optimal-brain-surgeon pruning; the rest is updated.

    H = X^T X ``[in, in]`` (+ ``damping`` times its mean diagonal), U upper triangular with ``U^T U = H^-1``.
    For each block of ``block`` columns of W ``[out, in]``, scores ``W_ij^2 / U_jj^2`` of the weights as updated so
    far choose the mask over all rows at once (N:M: at every M-th column, within each group). Then column by column
    ``e = (W_j - mask_j W_j) / U_jj`` and ``W_k -= e U_jk`` for the columns k > j.
    Inputs that were zero at every token have their weights pruned first.
    Cost: in^3 + out * in^2 FLOPs, about 24 * in^2 + 8 * out * in bytes. Source: Frantar and Alistarh 2023, arXiv 2301.00774,
    algorithm 1.

    ``inclusive_threshold`` prunes one weight more per block, as the original program's ``<=`` does: for parity only.
    """

    block: int = 128
    damping: float = 0.01
    inclusive_threshold: bool = False

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        if self.block < 1 or not 0 <= self.damping <= 1:
            raise UsageError(
                f"SparseGPT needs block >= 1 and 0 <= damping <= 1; found block {self.block} and damping {self.damping}."
            )

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        gram = stats[Gram]
        dead = gram.matrix.diagonal() == 0
        factor = gram.derive(("inverse factor", self.damping), lambda: inverse_factor(gram.mean(), self.damping))
        columns = weight.T.clone(memory_format=torch.contiguous_format)
        columns[dead] = 0
        keep = self._eliminate(columns, factor.upper, pattern, sparsity)
        notes = {"damping": factor.damping, "condition": factor.condition, "dead_inputs": float(dead.sum())}
        return Pruned(keep.T.contiguous(), columns.T.contiguous(), notes)

    def _eliminate(self, columns: Tensor, upper: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
        """Prune and update ``columns`` ``[in, out]`` in place, block by block; returns the mask ``[in, out]``."""
        inputs, outputs = columns.shape
        keep = torch.ones_like(columns, dtype=torch.bool)
        unit = pattern.group or 1
        width = max(unit, self.block // unit * unit)
        sub = max(unit, SUB_BLOCK // unit * unit)
        dropped = 0
        for start in range(0, inputs, width):
            stop = min(start + width, inputs)
            u, w = upper[start:stop, start:stop], columns[start:stop]
            if not pattern.structured:
                if self.inclusive_threshold:
                    target = pruned_count(w.numel(), sparsity) + 1
                else:
                    target = pruned_count(stop * outputs, sparsity) - dropped
                dropped += target
                keep[start:stop] = self._block_mask(w, u, target)
            errors = torch.empty_like(w)
            for low in range(0, stop - start, sub):
                high = min(low + sub, stop - start)
                w[low:high].addmm_(u[:low, low:high].T, errors[:low], alpha=-1)
                self._eliminate_sub_block(w, u, keep[start:stop], errors, low, high, pattern)
            columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
        return keep

    @staticmethod
    def _block_mask(w: Tensor, u: Tensor, drop: int) -> Tensor:
        # Ties are broken row by row, then by input, as for every other method: hence the transposes.
        scores = (w / u.diagonal()[:, None]).square().T.reshape(1, -1)
        return keep_highest(scores, drop).reshape(w.shape[1], w.shape[0]).T

    @staticmethod
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
