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
from secateur.methods.cost import Cost
from secateur.methods.solve import factorise
from secateur.statistics import Gram, InputStatistics, Statistic


@dataclass(frozen=True)
class SparseGPT(Method):
    """Optimal-brain-surgeon pruning; the rest is updated.

    H = X^T X ``[in, in]`` (+ ``damping`` times its mean diagonal) = V V^T with V upper triangular; U = V^-1, so U^T U = H^-1.
    For each block b of ``block`` columns of W ``[out, in]``, scores ``W_ij^2 / U_jj^2`` of the weights as updated so
    far choose the mask over all rows at once (N:M: at every M-th column, within each group). Then column by column
    ``e = (W_j - mask_j W_j) / U_jj`` and ``W_k -= e U_jk`` for the columns k > j of the block.
    What the columns p before the block lost, D = W - W', moves it as a whole beforehand, by ``D_p V_pb U_bb``: the same as the
    paper's updates to the right, but only the diagonal blocks of V are ever inverted.
    Inputs that were zero at every token have their weights pruned first.
    Cost: in^3 / 3 + out * in^2 FLOPs, about 8 * in^2 + 13 * out * in bytes beside the Gram. Source: Frantar and Alistarh 2023,
    arXiv 2301.00774, algorithm 1; the equivalence as in Chee et al. 2023, arXiv 2307.13304, theorem 6.

    ``inclusive_threshold`` prunes one weight more per block, as the original program's ``<=`` does: for parity only.
    """

    block: int = 128
    damping: float = 0.01
    inclusive_threshold: bool = False

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    own_cost: ClassVar[Cost] = Cost(shared_flops=1, flops=1, moved=100, steps=8, held=14, shared_held=8, shared_kept=4)

    def __post_init__(self) -> None:
        if self.block < 1 or not 0 <= self.damping <= 1:
            raise UsageError(
                f"SparseGPT needs block >= 1 and 0 <= damping <= 1; found block {self.block} and damping {self.damping}."
            )

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        gram = stats[Gram]
        dead = gram.matrix.diagonal() == 0
        scale = 1 / (gram.tokens or 1)
        factor = gram.derive(("factor", self.damping), lambda: factorise(gram.matrix, self.damping, scale))
        columns = weight.T.clone(memory_format=torch.contiguous_format)
        columns[dead] = 0
        keep = self._eliminate(columns, factor.upper, pattern, sparsity)
        notes = {"damping": factor.damping, "condition": factor.condition, "dead_inputs": float(dead.sum())}
        return Pruned(keep.T.contiguous(), columns.T.contiguous(), notes)

    def _eliminate(self, columns: Tensor, factor: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
        """Prune and update ``columns`` ``[in, out]`` in place, block by block; returns the mask ``[in, out]``."""
        inputs, outputs = columns.shape
        keep = torch.ones_like(columns, dtype=torch.bool)
        shift = torch.zeros_like(columns)  # sum over what was lost so far: V^T D
        unit = pattern.group or 1
        width = max(unit, self.block // unit * unit)
        dropped = 0
        for start in range(0, inputs, width):
            stop = min(start + width, inputs)
            w, v = columns[start:stop], factor[start:stop, start:stop]
            identity = torch.eye(stop - start, device=v.device, dtype=v.dtype)
            u = torch.linalg.solve_triangular(v, identity, upper=True)
            lost = w.clone()
            w.addmm_(u.T, shift[start:stop])
            if not pattern.structured:
                if self.inclusive_threshold:
                    target = pruned_count(w.numel(), sparsity) + 1
                else:
                    target = pruned_count(stop * outputs, sparsity) - dropped
                dropped += target
                keep[start:stop] = block_mask(w, u.diagonal(), target)
            eliminate_block(w, u, keep[start:stop], pattern)
            lost -= w
            shift[stop:].addmm_(factor[start:stop, stop:].T, lost)
        return keep
