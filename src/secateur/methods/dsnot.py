"""DSnoT: swap kept for pruned weights until the mean output of each row is restored; no weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.masks import Pattern
from secateur.methods.base import Method, Pruned, ScoreMethod
from secateur.methods.cost import Cost
from secateur.methods.initial import Initial, initial_method, united
from secateur.methods.wanda import Wanda
from secateur.statistics import ColumnNorms, InputStatistics, Moments, Statistic

VARIANCE_FLOOR = 1e-6  # of the mean variance: a constant input is the best to regrow, but not infinitely so


@dataclass(frozen=True)
class DSnoT(Method):
    """Swaps weights of another method's mask to restore each row's mean output.

    From the mask of ``initial``, in every row of W ``[out, in]`` on its own: with ``D_ij = W_ij E[x_j]``, the error is
    ``e_i = sum over pruned j of D_ij``. While ``|e_i| * tokens_per_sample > threshold``, at most ``cycles`` times: regrow the
    pruned weight whose D has the sign of e and whose ``|D_ij| / Var[x_j]^regrow_power`` is largest; prune the kept weight
    whose D has the other sign and whose Wanda score is lowest. ``same_sign`` lets a row stop before a swap that turns
    its error's sign: ``"always"``, ``"never"``, or, as the original program's default, for N:M patterns only (``"n:m"``);
    without it rows swap to and fro around zero until the cycles are used up, which narrow rows do not survive. N:M: the weight
    pruned is the lowest-scored kept one in the group of the regrown one, whatever its sign; the score is that of
    ``initial`` where it ranks weights by one, else Wanda's. Every weight moves once at most; a row with no candidate left
    stops. Counts per row and per group stay those of ``initial``. (The original breaks them where candidates run out, and
    regrows the weights of inputs that are always zero first, by 0/0.)

    ``threshold`` is in the original's unit, an error summed over the tokens of a sample: ``tokens_per_sample`` makes it
    so, whatever the length of the calibration samples.
    ``linears``: ``"attention"`` leaves all linears but those of attention to ``initial``, as the original program does
    by default, and less harmful where swaps do harm; ``"all"`` makes no such exception.
    When ``initial`` changed weights, as SparseGPT does, the error is that of the changed row, ``(W - W') E[x]``; the weights
    that stay are those of W', and those regrown come from the dense W.

    Cost, after that of ``initial``: about 6 passes over W to find candidates, then ``cycles`` times O(out);
    about 24 * out * in bytes. Source: Zhang et al. 2023, arXiv 2310.08915.
    """

    initial: Initial = "wanda"
    linears: Literal["all", "attention"] = "attention"
    cycles: int = 50
    threshold: float = 0.1
    tokens_per_sample: int = 2048
    regrow_power: float = 1.0
    same_sign: Literal["always", "n:m", "never"] = "always"

    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorms, Moments)
    own_cost: ClassVar[Cost] = Cost(moved=200, held=28)

    def __post_init__(self) -> None:
        if self.cycles < 0 or self.tokens_per_sample < 1 or not self.threshold >= 0 or not 0 <= self.regrow_power <= 4:
            raise UsageError(
                "DSnoT needs cycles >= 0, threshold >= 0, tokens_per_sample >= 1 and 0 <= regrow_power <= 4; found "
                f"{self.cycles}, {self.threshold}, {self.tokens_per_sample} and {self.regrow_power}."
            )
        for field, known in (("linears", ("all", "attention")), ("same_sign", ("always", "n:m", "never"))):
            if getattr(self, field) not in known:
                raise UsageError(f"DSnoT's {field} is one of {', '.join(known)}; found {getattr(self, field)!r}.")
        initial_method(self.initial)  # a name or a setting that does not exist is found before the work starts

    def statistics(self) -> tuple[type[Statistic], ...]:
        return united(self.needs, initial_method(self.initial).statistics())

    def cost(self) -> Cost:
        return self.own_cost + initial_method(self.initial).cost()

    def for_linear(self, name: str) -> Method:
        if self.linears == "all" or _in_attention(name):
            return self
        return initial_method(self.initial).for_linear(name)

    def prune(self, weight: Tensor, stats: InputStatistics, pattern: Pattern, sparsity: float) -> Pruned:
        initial = initial_method(self.initial)
        return self.refine(weight, initial.prune(weight, stats, pattern, sparsity), stats, pattern)

    def refine(self, weight: Tensor, start: Pruned, stats: InputStatistics, pattern: Pattern) -> Pruned:
        """Swap weights of ``start``, a mask of ``weight`` that may have changed the weights it keeps."""
        moments = stats[Moments]
        mean, priority = moments.derive(("regrowing", self.regrow_power), lambda: self._regrowing(moments))
        # What each weight is wherever it is kept: as the initial method left it, or, regrown, as it was.
        values = torch.where(start.mask, start.weight, weight)
        error = (weight - start.weight) @ mean
        regrow = _Regrowing(values, start.mask, mean, priority, self.cycles)
        if pattern.group is None:
            scores = Wanda().score(values, stats)
            partners = _Opposites(values, start.mask, mean, scores, self.cycles)
        else:
            initial = initial_method(self.initial)
            ranks = initial if isinstance(initial, ScoreMethod) else Wanda()
            partners = _GroupMates(values, start.mask, mean, ranks.score(values, stats), pattern.group)
        mask, after, swaps = self._swap(error, start.mask, regrow, partners, pattern)
        notes = start.notes | {
            "swaps_per_row": swaps,
            "mean_error_before": float(error.abs().mean()),
            "mean_error_after": float(after.abs().mean()),
        }
        return Pruned(mask, values.masked_fill_(~mask, 0), notes)

    def _regrowing(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """``E[x]`` and, up to a factor, ``E[x] / Var[x]^regrow_power`` ``[in]``."""
        mean, variance = moments.mean(), moments.variance()
        # A common factor changes no ranking; without one, powers of the variance could leave fp32's range.
        relative = variance / variance.mean().clamp(min=torch.finfo(variance.dtype).tiny)
        return mean, mean / relative.clamp(min=VARIANCE_FLOOR) ** self.regrow_power

    def _swap(
        self, error: Tensor, start: Tensor, regrow: _Regrowing, partners: _Opposites | _GroupMates, pattern: Pattern
    ) -> tuple[Tensor, Tensor, float]:
        """The mask, the rows' errors ``[out]`` and the mean number of swaps after all cycles from ``error`` on."""
        mask, first, rows = start.clone(), error.sign(), torch.arange(len(error), device=error.device)
        keep_sign = self.same_sign == "always" or (self.same_sign == "n:m" and pattern.structured)
        active = torch.ones_like(rows, dtype=torch.bool)
        used, swaps = torch.zeros(len(error), 2, dtype=torch.long, device=error.device), torch.zeros_like(rows)
        for _ in range(self.cycles):
            side = (error > 0).long()
            turn = used[rows, side]
            active &= (error.abs() * self.tokens_per_sample > self.threshold) & (turn < regrow.count[rows, side])
            if not active.any():
                break
            grown, gain = regrow.take(rows, side, turn)
            dropped, loss, there = partners.take(rows, side, turn, grown)
            after = error + loss - gain
            if keep_sign:
                active &= ~there | (after.sign() == first)
            used[rows, side] += active
            swap = active & there
            for place in (grown, dropped):
                mask[rows, place] ^= swap
            partners.forget(rows, dropped, swap)
            error = torch.where(swap, after, error)
            swaps += swap
        return mask, error, float(swaps.float().mean())


def _in_attention(name: str) -> bool:
    parent = name.lower().split(".")[-2:-1]
    return any(word in part for part in parent for word in ("attn", "attention"))


def _first(scores: Tensor, count: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The first ``count`` of every row in order, and where they are; of equal ones the lower index comes first."""
    values, places = scores.topk(min(count, scores.shape[1]), dim=1, largest=largest)
    places, by_place = places.sort(dim=1)
    values, by_value = values.gather(1, by_place).sort(dim=1, descending=largest, stable=True)
    return values, places.gather(1, by_value)


class _Regrowing:
    """Pruned weights in the order they come back, for rows whose error is negative (side 0) and positive (side 1).

    ``places``, ``gains`` ``[out, 2, n]``: where they are, and their D. ``count`` ``[out, 2]``: how many there are.
    """

    def __init__(self, values: Tensor, mask: Tensor, mean: Tensor, priority: Tensor, count: int) -> None:
        ranked = (values * priority).masked_fill_(mask, 0)  # so that what is kept has neither sign
        low, low_places = _first(ranked, count, largest=False)
        high, high_places = _first(ranked, count, largest=True)
        self.places = torch.stack((low_places, high_places), dim=1)
        self.count = torch.stack(((low < 0).sum(dim=1), (high > 0).sum(dim=1)), dim=1)
        self.gains = torch.stack([values.gather(1, at) * mean[at] for at in (low_places, high_places)], dim=1)

    def take(self, rows: Tensor, side: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        turn = turn.clamp(max=self.places.shape[2] - 1)  # rows past their last candidate have stopped
        return self.places[rows, side, turn], self.gains[rows, side, turn]


class _Opposites:
    """Kept weights in the order they go, of positive D (side 0) and of negative D (side 1): unstructured patterns."""

    def __init__(self, values: Tensor, mask: Tensor, mean: Tensor, scores: Tensor, count: int) -> None:
        found = []
        for sign in (1, -1):
            wanted = mask & (values * (sign * mean) > 0)
            lowest, places = _first(scores.masked_fill(~wanted, torch.inf), count, largest=False)
            found.append((places, values.gather(1, places) * mean[places], lowest < torch.inf))
        self.places, self.losses, self.there = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))

    def take(self, rows: Tensor, side: Tensor, turn: Tensor, grown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turn = turn.clamp(max=self.places.shape[2] - 1)
        return self.places[rows, side, turn], self.losses[rows, side, turn], self.there[rows, side, turn]

    def forget(self, rows: Tensor, places: Tensor, swap: Tensor) -> None:
        """Nothing to do: a row's turns never come back."""


class _GroupMates:
    """The lowest-scored weight still kept since the start in the group of the regrown one: N:M patterns."""

    def __init__(self, values: Tensor, mask: Tensor, mean: Tensor, scores: Tensor, group: int) -> None:
        self.values, self.mean, self.group = values, mean, group
        self.scores = scores.masked_fill(~mask, torch.inf)

    def take(self, rows: Tensor, side: Tensor, turn: Tensor, grown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = grown // self.group * self.group
        group = start[:, None] + torch.arange(self.group, device=grown.device)
        lowest, offset = self.scores.gather(1, group).min(dim=1)
        place = start + offset
        return place, self.values[rows, place] * self.mean[place], lowest < torch.inf

    def forget(self, rows: Tensor, places: Tensor, swap: Tensor) -> None:
        """Weights that went are no candidates any more."""
        self.scores[rows, places] = self.scores[rows, places].masked_fill(swap, torch.inf)
