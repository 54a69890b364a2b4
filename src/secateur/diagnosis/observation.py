"""One pass over the dense model: how large each linear's inputs are on a set, and how many directions they fill."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.models.batches import make_batches
from secateur.models.capture import Activations, capture
from secateur.models.hidden import HiddenStates
from secateur.models.skeleton import Skeleton
from secateur.pruning.collect import Kinds, collect
from secateur.statistics import ColumnNorms, Gram, InputStatistics

CURVE_POINTS = 48
Norms = dict[str, ColumnNorms]


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of the Gram of one input: ``name`` is the first linear that takes it, ``linears`` how many do.

    ``effective_rank``: ``exp(-sum p log p)`` with ``p`` the eigenvalues over their sum (Roy and Vetterli 2007).
    ``log10_condition``: largest over smallest eigenvalue; fp32 sums tell no more than ``1 / (inputs * eps)``, and a Gram
    that is singular has that. ``curve``: log10 of the falling eigenvalues over the largest, at evenly spread ranks.
    """

    name: str
    block: int
    linears: int
    inputs: int
    effective_rank: float
    log10_condition: float
    curve: list[float]

    @property
    def share(self) -> float:
        """The effective rank over the number of inputs."""
        return self.effective_rank / self.inputs

    def to_json(self) -> dict[str, Any]:
        return {
            "input": self.name,
            "block": self.block,
            "linears": self.linears,
            "inputs": self.inputs,
            "effective_rank": round(self.effective_rank, 4),
            "log10_condition": round(self.log10_condition, 4),
            "curve": [round(value, 3) for value in self.curve],
        }


@dataclass(frozen=True)
class Observed:
    """``norms``: of all samples, by linear name; linears that share an input share the object. ``halves``: of each half of
    the samples (none when there is only one). ``spectra``: of each distinct input."""

    norms: Norms
    halves: tuple[Norms, ...]
    spectra: list[Spectrum]

    def inputs(self) -> dict[str, ColumnNorms]:
        """The norms of each distinct input, by the first linear that takes it."""
        first: dict[int, str] = {}
        for name, norms in self.norms.items():
            first.setdefault(id(norms), name)
        return {name: self.norms[name] for name in first.values()}


def observe(
    skeleton: Skeleton,
    sequences: Sequence[Sequence[int]],
    batch: int,
    activation_bytes: int | None = None,
    spectra: bool = True,
) -> Observed:
    """Run the dense model over ``sequences``, block by block, each half by itself; ``spectra`` if the Grams are wanted.

    Cost: one forward; with ``spectra`` inputs^2 FLOPs a token and 10 * inputs^3 once for each distinct input, and three
    times the Grams of one block in memory.
    """
    kinds: Kinds = (ColumnNorms, Gram) if spectra else (ColumnNorms,)
    parts = [half for half in halves(sequences) if half]
    stores = [HiddenStates(activation_bytes and activation_bytes // len(parts)) for _ in parts]
    flows = [capture(skeleton, make_batches(half, batch), store) for half, store in zip(parts, stores, strict=True)]
    norms: Norms = {}
    by_half: list[Norms] = [{} for _ in parts]
    found: list[Spectrum] = []
    for index in range(len(skeleton.blocks)):
        taken = _block(skeleton, index, flows, kinds)
        for names in _groups(taken):
            merged = _merged([half[names[0]] for half in taken if names[0] in half], kinds)
            norms |= dict.fromkeys(names, merged[ColumnNorms])
            if spectra and merged[Gram].tokens:
                found.append(_spectrum(names, index, merged[Gram].matrix))
        for half, stats in zip(by_half, taken, strict=True):
            half.update({name: one[ColumnNorms] for name, one in stats.items()})
    for store in stores:
        store.close()
    return Observed(norms, tuple(by_half) if len(by_half) > 1 else (), found)


def _block(
    skeleton: Skeleton, index: int, flows: Sequence[Activations], kinds: Kinds
) -> list[dict[str, InputStatistics]]:
    block, linears = skeleton.load_block(index), skeleton.linears(index)
    advance = index < len(skeleton.blocks) - 1
    found = [collect(index, block, linears, flow, kinds, advance) for flow in flows]
    skeleton.drop_block(index)
    return found


def _groups(taken: Sequence[dict[str, InputStatistics]]) -> list[list[str]]:
    """The names of the linears that share an input, in order."""
    found: list[list[str]] = []
    known: set[str] = set()
    for half in taken:
        together: dict[int, list[str]] = {}
        for name, stats in half.items():
            if name not in known:
                together.setdefault(id(stats), []).append(name)
        known |= half.keys()
        found += together.values()
    return found


@torch.inference_mode()
def _merged(parts: Sequence[InputStatistics], kinds: Kinds) -> InputStatistics:
    """The statistics of all parts' tokens together; the parts stay as they are."""
    made = []
    for kind in kinds:
        first = parts[0][kind]
        total = kind(first.inputs, first.device)
        for part in parts:
            one = part[kind]
            sums = [one.matrix] if isinstance(one, Gram) else one.sums()
            for mine, other in zip(total.sums(), sums, strict=True):
                mine += other
        total.merged(sum(part[kind].tokens for part in parts))
        made.append(total)
    return InputStatistics(made)


def _spectrum(names: Sequence[str], block: int, gram: Tensor) -> Spectrum:
    inputs = len(gram)
    values = torch.linalg.eigvalsh(gram.double()).flip(0).clamp(min=0)
    eps = torch.finfo(torch.float32).eps
    largest = float(values[0])
    curve = torch.zeros(1)
    if largest > 0:
        ranks = torch.linspace(0, inputs - 1, min(CURVE_POINTS, inputs)).round().long()
        curve = (values[ranks.to(values.device)] / largest).clamp(min=eps).log10()
    smallest = max(float(values[-1]), largest * inputs * eps)
    return Spectrum(
        names[0],
        block,
        len(names),
        inputs,
        effective_rank(values),
        math.log10(largest / smallest) if largest > 0 else 0.0,
        curve.tolist(),
    )


def effective_rank(eigenvalues: Tensor) -> float:
    """``exp(-sum p log p)``, ``p`` the eigenvalues over their sum: between 1 and their number; 0 when all are 0."""
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    p = eigenvalues / total
    return math.exp(float(-torch.xlogy(p, p).sum()))


def halves(sequences: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """The samples in two halves that do not depend on their order: sorted by a hash of their ids, dealt in turn."""
    ordered = sorted(sequences, key=lambda ids: (hashlib.sha256(json.dumps(list(ids)).encode()).digest(), list(ids)))
    return [ordered[::2], ordered[1::2]]
