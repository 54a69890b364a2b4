"""How much the masks that sets lead to have in common, beside what two halves of one set do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.diagnosis.base import Family, Finding, Quantity, Subject
from secateur.diagnosis.observation import Norms, Observed
from secateur.masks import Pattern
from secateur.masks.agreement import agreement, chance_jaccard, jaccard, shared_counts
from secateur.methods.wanda import Wanda
from secateur.models.skeleton import Skeleton
from secateur.statistics import InputStatistics


@dataclass(frozen=True)
class Overlap:
    """Between the Wanda masks of n sets, means over linears. ``halves`` ``[n, n]``: Jaccard index of the pruned positions of
    a half of one set and a half of another (mean of the four pairs), on the diagonal of the two halves of one set;
    ``nan`` where a set has a single sample. ``whole``, ``agree`` ``[n, n]``: Jaccard index and share of equal decisions of
    masks from all samples. ``chance``: the Jaccard index of independent masks.
    """

    halves: Tensor
    whole: Tensor
    agree: Tensor
    chance: float


def overlap(skeleton: Skeleton, observed: Sequence[Observed], pattern: Pattern, sparsity: float) -> Overlap:
    """Prune every linear with the norms of every set and its halves (propagation dense), and compare the masks.

    Linears that one of the sets never reaches (experts) are left out. Cost: three Wanda masks a set, and
    ``2 * (3 n)^2`` FLOPs a weight.
    """
    count = len(observed)
    sides: list[Norms] = [one.norms for one in observed]
    for one in observed:
        sides += one.halves or (one.norms, one.norms)
    method, totals, linears = Wanda(), [], 0
    for index in range(len(skeleton.blocks)):
        for linear in skeleton.linears(index):
            if not all(linear.name in side and side[linear.name].tokens for side in sides):
                continue
            pattern.check_width(linear.inputs, linear.name)
            weight = skeleton.weight(linear).to(skeleton.device, torch.float32)
            masks = [
                method.prune(weight, InputStatistics([side[linear.name]]), pattern, sparsity).mask for side in sides
            ]
            shared = shared_counts(masks)
            totals.append((jaccard(shared), agreement(shared, weight.numel())))
            linears += 1
    indices, agree = (torch.stack(parts).mean(dim=0) for parts in zip(*totals, strict=True))
    chance = chance_jaccard(pattern.sparsity if pattern.sparsity is not None else sparsity)
    missing = torch.tensor([not one.halves for one in observed])
    return Overlap(_by_halves(indices, count, missing), indices[:count, :count], agree[:count, :count], chance)


def _by_halves(indices: Tensor, count: int, missing: Tensor) -> Tensor:
    """Means over pairs of halves: the sides after the first ``count`` are the halves, two a set."""
    pairs = indices[count:, count:].reshape(count, 2, count, 2).permute(0, 2, 1, 3)
    found = pairs.mean(dim=(2, 3))
    found.diagonal().copy_(pairs.diagonal(dim1=0, dim2=1)[0, 1])
    found[missing] = torch.nan
    found[:, missing] = torch.nan
    return found


def overlap_values(found: Overlap, index: int, reference: int | None) -> dict[str, float]:
    """What ``found`` says of the set at ``index`` alone, and beside the reference at its."""
    values = {}
    if not bool(found.halves[index, index].isnan()):
        values["mask_overlap_within"] = float(found.halves[index, index])
    if reference is not None:
        values["mask_overlap_reference"] = float(found.whole[index, reference])
        values["mask_agreement_reference"] = float(found.agree[index, reference])
    return values


def _look(subject: Subject) -> Finding:
    if subject.skeleton is None or subject.observed is None:
        return Finding()
    others = [] if subject.observed_reference is None else [subject.observed_reference]
    options = subject.options
    found = overlap(subject.skeleton, [subject.observed, *others], options.pattern, options.sparsity)
    return Finding(overlap_values(found, 0, 1 if others else None), {"mask_overlap_chance": found.chance})


OVERLAP = Family(
    "Masks",
    {
        "mask_overlap_within": Quantity(
            "overlap of halves",
            "Jaccard index of the positions that Wanda prunes with one half of the set and with the other, mean over linears: "
            "how far the draw alone moves the mask",
        ),
        "mask_overlap_reference": Quantity(
            "overlap with reference", "the same of the whole set's mask and one from as many samples of the reference"
        ),
        "mask_agreement_reference": Quantity(
            "agreement with reference", "share of weights that both masks keep or both prune", ".1%"
        ),
    },
    _look,
)
"""Cost: three Wanda masks of the model."""
