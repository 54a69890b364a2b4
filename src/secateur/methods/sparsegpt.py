"""SparseGPT: prune column by column, and let the columns to the right make up for the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.masks import Pattern
from secateur.masks.selection import pruned_count
from secateur.methods.base import Method, Pruned
from secateur.methods.columns import block_mask, eliminate_block
from secateur.methods.solve import inverse_factor
from secateur.statistics import Gram, InputStatistics, Statistic


@dataclass(frozen=True)
class SparseGPT(Method):
    """Optimal-brain-surgeon pruning; the rest is updated.

    H = X^T X ``[in, in]`` (+ ``damping`` times its mean diagonal), U upper triangular with ``U^T U = H^-1``.
    For each block of ``block`` columns of W ``[out, in]``, scores ``W_ij^2 / U_jj^2`` of the weights as updated so
    far choose the mask over all rows at once (N:M: at every M-th column, within each group). Then column by column
    ``e = (W_j - mask_j W_j) / U_jj`` and ``W_k -= e U_jk`` for the columns k > j.
    Inputs that were zero at every token have their weights pruned first.
    Cost: in^3 + out * in^2 FLOPs, about 12 * in^2 + 9 * out * in bytes beside the Gram. Source: Frantar and Alistarh 2023, arXiv 2301.00774,
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
        scale = 1 / max(gram.tokens, 1)
        factor = gram.derive(("inverse factor", self.damping), lambda: inverse_factor(gram.matrix, self.damping, scale))
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
                keep[start:stop] = block_mask(w, u.diagonal(), target)
            errors = eliminate_block(w, u, keep[start:stop], pattern)
            columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
        return keep
