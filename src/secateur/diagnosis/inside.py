"""What the set does inside the dense model: the directions its activations fill, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from secateur.diagnosis.base import Family, Finding, Quantity, Subject
from secateur.diagnosis.observation import Observed


def _spectra(subject: Subject) -> Finding:
    observed = subject.observed
    if observed is None or not observed.spectra:
        return Finding()
    spectra = observed.spectra
    values = {
        "effective_rank": _mean([spectrum.effective_rank for spectrum in spectra]),
        "effective_rank_share": _mean([spectrum.share for spectrum in spectra]),
        "gram_log10_condition": _mean([spectrum.log10_condition for spectrum in spectra]),
    }
    return Finding(values, {"spectra": [spectrum.to_json() for spectrum in spectra]})


def _activations(subject: Subject) -> Finding:
    own, reference = subject.observed, subject.observed_reference
    return Finding() if own is None or reference is None else Finding(norm_distances(own, reference))


def norm_distances(one: Observed, reference: Observed) -> dict[str, float]:
    """How far the input norms per token of ``one`` are from the ``reference``'s; means over distinct inputs."""
    from scipy.stats import rankdata

    distances, correlations, ranks = [], [], []
    theirs = reference.norms
    for name, norms in one.inputs().items():
        if name not in theirs or not norms.tokens or not theirs[name].tokens:
            continue  # an expert that one of them never reaches
        a, b = norms.norms().double().cpu(), theirs[name].norms().double().cpu()
        if float(b.norm()) == 0:
            continue
        distances.append(float((a - b).norm() / b.norm()))
        correlations.append(_correlation(a, b))
        ranks.append(_correlation(*(torch.from_numpy(rankdata(side.numpy())).double() for side in (a, b))))
    if not distances:
        return {}
    return {
        "norm_distance": _mean(distances),
        "norm_correlation": _mean(correlations),
        "norm_rank_correlation": _mean(ranks),
    }


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Pearson's; 1 where both are constant, 0 where only one is."""
    a, b = one - one.mean(), other - other.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else float(bool((a == 0).all() and (b == 0).all()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


SPECTRA = Family(
    "Directions filled inside the model",
    {
        "effective_rank": Quantity(
            "effective rank",
            "exp of the entropy of the Gram's eigenvalues (Roy and Vetterli 2007); mean over the distinct inputs of all "
            "linears of the dense model",
            ",.1f",
        ),
        "effective_rank_share": Quantity("of the width", "effective rank over the number of inputs, mean", ".1%"),
        "gram_log10_condition": Quantity(
            "log10 condition",
            "log10 of the largest over the smallest eigenvalue, at most what fp32 can tell; mean",
            ".2f",
        ),
    },
    _spectra,
)
"""Cost: one forward, inputs^2 FLOPs a token and 10 * inputs^3 for each distinct input."""

ACTIVATIONS = Family(
    "Activations against the reference's",
    {
        "norm_distance": Quantity(
            "norm distance",
            "relative L2 distance of the input norms per token to the reference's, mean over distinct inputs",
        ),
        "norm_correlation": Quantity("correlation", "Pearson correlation of those norms over channels, mean"),
        "norm_rank_correlation": Quantity(
            "rank correlation", "Spearman correlation of the same: a few huge channels do not decide it"
        ),
    },
    _activations,
)
"""Cost: one forward over the reference's samples, shared by sets of one size."""
