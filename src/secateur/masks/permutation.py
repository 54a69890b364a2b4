"""Which inputs stand together in the groups of an N:M pattern: an order of them that keeps more of the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.masks.pattern import Pattern
from secateur.masks.selection import keep_mask

ROWS_AT_MOST = 1024  # of the scores, evenly spread: what the assignments look at
GROUPS_AT_ONCE = 128  # that exchange channels in one assignment


def best_order(scores: Tensor, pattern: Pattern, rounds: int = 1) -> Tensor:
    """An order of the inputs ``[in]`` int64 (place p takes input ``order[p]``) under which N:M keeps more of ``scores``.

    ``scores`` ``[out, in]``, not negative. First the inputs are dealt out: sorted by the sum of their scores, the first
    in/M to the groups in turn, the next in/M likewise, so that the large ones compete with small ones. Then for each of
    the M places, ``rounds`` times: every group gives up the input in that place, and the inputs are handed out anew so that
    the kept scores are highest (linear sum assignment). An input c adds to a group of which t is the lowest score it
    would keep without c ``sum over rows of max(0, s_c - t)``. Within a group inputs keep their order. When this does not
    keep more than the order the inputs come in, it is that order.

    Deterministic. Assignments look at ``ROWS_AT_MOST`` rows and are made among ``GROUPS_AT_ONCE`` groups at a time (all
    of them in the paper), so that the cost is ``2 * rounds * in * (rows * groups)`` differences and M * in / M / groups
    assignments of groups^3 at worst. Memory: three copies of the scores.
    Source: Zhang et al. 2024, "Plug-and-Play: an efficient post-training pruning method for large language models" (ICLR),
    section 3.2. Raises ``PatternError`` when the inputs do not divide into groups.
    """
    inputs = scores.shape[1]
    identity = torch.arange(inputs, device=scores.device)
    if pattern.keep is None or pattern.group is None:
        return identity
    pattern.check_width(inputs, "a weight matrix")
    if not 0 < pattern.keep < pattern.group < inputs:
        return identity
    stride = -(-scores.shape[0] // ROWS_AT_MOST)
    sample = scores[::stride].T.float().contiguous()
    members = _dealt(scores, pattern.group).view(-1, pattern.group)
    for _ in range(rounds):
        _reassign(members, sample, pattern.keep)
    found = _sorted(members)
    return found if kept_score(scores[:, found], pattern) > kept_score(scores, pattern) else identity


def kept_score(scores: Tensor, pattern: Pattern) -> float:
    """The sum of the ``scores`` ``[out, in]`` that the pattern keeps, in fp64."""
    return float(torch.where(keep_mask(scores, pattern, 0), scores, 0).sum(dtype=torch.float64))


def chunked(order: Tensor, size: int) -> Tensor:
    """``order`` of n for each of the ``size`` / n equal parts of ``size`` places, one after another, ``[size]``."""
    parts = torch.arange(0, size, len(order), device=order.device)
    return (parts[:, None] + order).reshape(-1)


def _dealt(scores: Tensor, group: int) -> Tensor:
    """The inputs by falling column sums, dealt to the groups in turn, the direction changing each time."""
    ranked = scores.sum(dim=0, dtype=torch.float64).argsort(descending=True, stable=True).view(group, -1)
    ranked[1::2] = ranked[1::2].flip(1)
    return ranked.T.reshape(-1)


def _sorted(members: Tensor) -> Tensor:
    """The order of ``members`` ``[groups, M]`` with inputs rising within groups, and groups by their first."""
    members = members.sort(dim=1).values
    return members[members[:, 0].argsort()].reshape(-1)


def _reassign(members: Tensor, sample: Tensor, keep: int) -> None:
    """Hand out the inputs of one place after another of ``members`` ``[groups, M]``, in place; ``sample`` ``[in, rows]``."""
    from scipy.optimize import linear_sum_assignment

    groups, size = members.shape
    parts = -(-groups // GROUPS_AT_ONCE)
    for place in range(size):
        others = [other for other in range(size) if other != place]
        for part in range(parts):
            chosen = members[part::parts]  # a view: groups far apart, so that unlike ones meet
            offered = chosen[:, place]
            # The lowest score that the others keep: a newcomer must exceed it, and drives it out.
            floor = _largest(sample[chosen[:, others]], keep)
            candidates = sample[offered]
            # sum of max(0, s - t) = (sum |s - t| + sum s - sum t) / 2; what a row or column adds alone decides nothing.
            gain = torch.cdist(floor, candidates, p=1.0)
            _, taken = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
            chosen[:, place] = offered[torch.from_numpy(taken).to(offered.device)]


def _largest(values: Tensor, rank: int) -> Tensor:
    """The ``rank``-th largest (from 1) of ``values`` ``[groups, n, rows]`` along n."""
    return values.sort(dim=1, descending=True).values[:, rank - 1]
