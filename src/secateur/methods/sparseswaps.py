"""SparseSwaps: exchange kept and pruned weights of a mask for as long as that lowers the output error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from secateur.errors import UsageError
from secateur.masks import Pattern
from secateur.methods.base import Method, Pruned
from secateur.methods.cost import Cost
from secateur.methods.initial import Initial, initial_method, united
from secateur.statistics import Gram, InputStatistics, Statistic

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}  # numbers held at once for a chunk of rows
NEGLIGIBLE = 1e-6  # a gain below this share of a row's error is within the rounding


@dataclass(frozen=True)
class SparseSwaps(Method):
    """Another method's mask, bettered by swaps of one kept and one pruned weight of a row.

    With G = X^T X ``[in, in]``, r the pruned weights of a row w (zero where kept) and c = G r, its error is r^T G r, and
    pruning k while keeping p changes it by
    ``w_k^2 G_kk + 2 w_k c_k + w_p^2 G_pp - 2 w_p c_p - 2 w_k w_p G_kp``. Swaps are made while that is negative, at most
    ``swaps`` a row; the error never rises. N:M: only within a group. The kept weights are W's own, even where ``initial``
    changes them: to refit them, name this method as the ``initial`` of ``reconstruct``.

    ``exact``: each swap is the best of all pairs of its row (in^2 / 4 of them; c in for N:M). Otherwise, which is far
    cheaper, the best of ``candidates`` kept by ``candidates`` pruned weights, those with the lowest terms in k and in p alone
    (N:M: of the groups with the lowest change), each taking part in one swap before the candidates are chosen anew; a row
    ends when none of its candidates gains, so a pair that gains may be left.
    Cost: 2 * out * in^2 FLOPs, then 3 * candidates^2 + 8 * in a row and swap; 16 * out * in bytes.
    Source: Zimmer et al. 2025, arXiv 2512.10922.
    """

    initial: Initial = "wanda"
    swaps: int = 1000
    exact: bool = False
    candidates: int = 16

    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    own_cost: ClassVar[Cost] = Cost(flops=2, moved=400, held=20)

    def __post_init__(self) -> None:
        initial_method(self.initial)
        if self.swaps < 0 or self.candidates < 1:
            raise UsageError(
                f"SparseSwaps needs swaps >= 0 and candidates >= 1; found swaps {self.swaps} and candidates "
                f"{self.candidates}."
            )

    def statistics(self) -> tuple[type[Statistic], ...]:
        return united(self.needs, initial_method(self.initial).statistics())

    def cost(self) -> Cost:
        return self.own_cost + initial_method(self.initial).cost()

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        start = initial_method(self.initial).prune(weight, stats, pattern, sparsity)
        gram, mask = stats[Gram].matrix, start.mask.clone()
        outputs, inputs = weight.shape
        pairs = inputs * inputs // 4 if self.exact else min(self.candidates, inputs) ** 2
        rows = max(1, CHUNK.get(weight.device.type, CHUNK["cuda"]) // max(inputs, pairs))
        before = after = made = 0.0
        for first in range(0, outputs, rows):
            part = _Rows(weight[first : first + rows], mask[first : first + rows], gram, pattern)
            before += float(part.errors().sum())
            made += part.swap(self.swaps, None if self.exact else self.candidates)
            after += float(part.errors().sum())
        share = after / before if before > 0 else 1.0
        notes = start.notes | {"swaps_per_row": made / max(outputs, 1), "error_share": share}
        return Pruned(mask, weight.masked_fill(~mask, 0), notes)


class _Rows:
    """Some rows of a matrix: their weights, their mask (changed in place), and c = G r."""

    def __init__(self, weight: Tensor, mask: Tensor, gram: Tensor, pattern: Pattern) -> None:
        self.weight, self.mask, self.gram, self.pattern = weight, mask, gram, pattern
        self.diagonal = gram.diagonal()
        self.pull = weight.masked_fill(mask, 0) @ gram

    def errors(self) -> Tensor:
        return (self.weight.masked_fill(self.mask, 0) * self.pull).sum(dim=1)

    def swap(self, limit: int, candidates: int | None) -> int:
        """Swap until nothing gains or every row has made ``limit`` swaps; returns the swaps made."""
        left = torch.full((len(self.weight),), limit, device=self.weight.device)
        if bool(self.mask.all()) or not bool(self.mask.any()):
            return 0
        least = -NEGLIGIBLE * self.errors()
        active = (left > 0).nonzero().flatten()
        while len(active):
            made = self._round(active, left, least, candidates)
            left[active] -= made
            active = active[(made > 0) & (left[active] > 0)]
        return int((limit - left).sum())

    def _round(self, active: Tensor, left: Tensor, least: Tensor, candidates: int | None) -> Tensor:
        """Choose candidates for the ``active`` rows, swap among them; returns the swaps of each row."""
        weight, mask, pull = self.weight[active], self.mask[active], self.pull[active]
        both, cross = weight.square() * self.diagonal, 2 * weight * pull
        prune = torch.where(mask, both + cross, torch.inf)
        keep = torch.where(mask, torch.inf, both - cross)
        if self.pattern.keep is not None and self.pattern.group is not None:
            table = _Table.of_groups(self.gram, weight, mask, prune, keep, self.pattern, candidates)
        else:
            table = _Table.of_rows(self.gram, weight, mask, prune, keep, candidates)
        made, room = torch.zeros_like(active), left[active]
        going = torch.arange(len(active), device=mask.device)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(1 if candidates is None else candidates):
            value, place = table.change.flatten(1).min(dim=1)
            gains = (value < least[active[going]]) & (made[going] < room[going])
            if not bool(gains.all()):  # a row that gains nothing now gains nothing until the next round
                going, place = going[gains], place[gains]
                table.narrow(gains)
            if not len(going):
                break
            pruned, kept = table.swap(place)
            mask[going, pruned], mask[going, kept] = False, True
            made[going] += 1
            steps.append((going, pruned, kept))
        if steps:
            moved = torch.zeros(len(active), len(steps), 2, dtype=torch.long, device=mask.device)
            sign = torch.zeros(moved.shape, device=mask.device)
            for step, (rows, pruned, kept) in enumerate(steps):
                moved[rows, step, 0], moved[rows, step, 1] = pruned, kept
                sign[rows, step, 0], sign[rows, step, 1] = 1, -1
            moved, sign = moved.flatten(1), sign.flatten(1)
            # Sums of the Gram's rows, each times the weight moved, without a copy of those rows.
            sums = embedding_bag(moved, self.gram, mode="sum", per_sample_weights=weight.gather(1, moved) * sign)
            self.pull[active] = pull.add_(sums)
            self.mask[active] = mask
        return made


class _Table:
    """Candidates to prune and to keep, ``[rows, groups, a]`` and ``[rows, groups, b]`` (inputs of the row), and the change
    of the row's error for each pair within a group ``[rows, groups, a, b]``; infinite for a pair that cannot be."""

    def __init__(self, gram: Tensor, weight: Tensor, prune: Tensor, keep: Tensor, change: Tensor) -> None:
        self.gram, self.prune, self.keep, self.change = gram, prune.flatten(1), keep.flatten(1), change
        self.prune_weight, self.keep_weight = weight.gather(1, self.prune), weight.gather(1, self.keep)

    @classmethod
    def of_rows(
        cls, gram: Tensor, weight: Tensor, mask: Tensor, prune: Tensor, keep: Tensor, candidates: int | None
    ) -> _Table:
        """The ``candidates`` inputs with the lowest ``prune`` and ``keep`` of each row; all when ``None``."""
        most = int(mask.sum(dim=1).max()), int((~mask).sum(dim=1).max())
        a, b = most if candidates is None else (min(candidates, count) for count in most)
        prunes, keeps = (
            terms.topk(count, dim=1, largest=False, sorted=False).indices[:, None]
            for terms, count in ((prune, a), (keep, b))
        )
        cross = gram[prunes[..., :, None], keeps[..., None, :]]
        return cls(gram, weight, prunes, keeps, _changes(cross, weight, prune, keep, prunes, keeps))

    @classmethod
    def of_groups(
        cls,
        gram: Tensor,
        weight: Tensor,
        mask: Tensor,
        prune: Tensor,
        keep: Tensor,
        pattern: Pattern,
        candidates: int | None,
    ) -> _Table:
        """The ``candidates`` groups of an N:M pattern whose best pair changes the error most; all when ``None``."""
        assert pattern.keep is not None
        assert pattern.group is not None
        grouped = mask.unflatten(1, (-1, pattern.group))
        order = grouped.to(torch.int8).argsort(dim=2, descending=True, stable=True)
        # Each group's own block of the Gram, so that looking up its pairs stays within little memory.
        blocks = gram.view(*grouped.shape[1:], *grouped.shape[1:]).diagonal(dim1=0, dim2=2).contiguous()
        number = torch.arange(grouped.shape[1], device=mask.device)
        cross = blocks[order[..., : pattern.keep, None], order[..., None, pattern.keep :], number[:, None, None]]
        order += number[:, None] * pattern.group
        prunes, keeps = order[..., : pattern.keep], order[..., pattern.keep :]
        change = _changes(cross, weight, prune, keep, prunes, keeps)
        if candidates is not None and candidates < change.shape[1]:
            chosen = change.flatten(2).amin(dim=2).topk(candidates, dim=1, largest=False, sorted=False).indices
            row = torch.arange(len(mask), device=mask.device)[:, None]
            prunes, keeps, change = prunes[row, chosen], keeps[row, chosen], change[row, chosen]
        return cls(gram, weight, prunes, keeps, change)

    def narrow(self, rows: Tensor) -> None:
        """Go on with some ``rows`` (bool) only."""
        self.prune, self.keep, self.change = self.prune[rows], self.keep[rows], self.change[rows]
        self.prune_weight, self.keep_weight = self.prune_weight[rows], self.keep_weight[rows]

    def swap(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Swap the pair at ``place`` of every row; both leave the table. Returns the inputs pruned and kept ``[rows]``."""
        _, groups, a, b = self.change.shape
        group = place // (a * b)
        at_prune, at_keep = (group * a + place // b % a)[:, None], (group * b + place % b)[:, None]
        pruned, kept = self.prune.gather(1, at_prune), self.keep.gather(1, at_keep)
        lost, won = self.prune_weight.gather(1, at_prune), self.keep_weight.gather(1, at_keep)
        for inputs, weights, at, sign, dim in (
            (self.prune, self.prune_weight, at_prune, 2, 3),
            (self.keep, self.keep_weight, at_keep, -2, 2),
        ):
            term = (lost * self.gram[inputs, pruned]).sub_(won * self.gram[inputs, kept]).mul_(weights).mul_(sign)
            term.scatter_(1, at, torch.inf)
            self.change += term.unflatten(1, (groups, -1)).unsqueeze(dim)
        return pruned[:, 0], kept[:, 0]


def _changes(change: Tensor, weight: Tensor, prune: Tensor, keep: Tensor, prunes: Tensor, keeps: Tensor) -> Tensor:
    """The change of the error ``[rows, groups, a, b]`` from pruning one of ``prunes`` and keeping one of ``keeps``.

    ``change`` is given as G's entries of those pairs, and changed in place.
    """
    change *= _at(weight, prunes)[..., :, None]
    change *= _at(weight, keeps).mul_(-2)[..., None, :]
    change += _at(prune, prunes)[..., :, None]
    change += _at(keep, keeps)[..., None, :]
    return change


def _at(values: Tensor, inputs: Tensor) -> Tensor:
    """The ``values`` ``[rows, in]`` at ``inputs`` ``[rows, groups, n]`` of each row."""
    return values.gather(1, inputs.flatten(1)).view(inputs.shape)
