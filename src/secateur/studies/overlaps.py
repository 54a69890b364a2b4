"""Overlap of masks between labels of an axis, beside that between seeds of one label."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from statistics import mean
from typing import Any

from secateur.studies.folder import StudyFolder
from secateur.studies.mask_sample import POSITIONS, overlap
from secateur.studies.plan import StudyPlan

SEEDS_AT_MOST = 3
"""Other labels are compared within each of the first so many seeds, and so many first seeds with each other."""


def mask_overlaps(plan: StudyPlan, folder: StudyFolder) -> dict[str, Any]:
    """masks.json: mean Jaccard index of the pruned positions (and agreement) of cells that differ in the seed alone, and
    of those that differ in one axis that decides the calibration data; by the labels of the others."""
    masks: dict[tuple[tuple[str, ...], int], Mapping[str, Any]] = {}
    axes = list(plan.study.spec.axes)
    for cell, digest in plan.cells:
        found = folder.cells.get(digest, {}).get("masks")
        if found and not cell.control and plan.works[digest].set_key:
            masks[tuple(cell.labels.values()), cell.seed] = found
    kinds = _seeds(masks, axes)
    for index, axis in enumerate(axes):
        paths = {path for fields in plan.study.spec.axes[axis].labels.values() for path in fields}
        if any(path.startswith("calibration") for path in paths):
            kinds += _labels(masks, axes, index)
    note = (
        f"Jaccard index of the pruned positions, at the same {POSITIONS:,} or so fixed positions of every model, linears weighed "
        "by size; 95 % error of one index below 1 %."
    )
    return {"kinds": kinds, "note": note}


def _seeds(masks: Mapping[Any, Any], axes: list[str]) -> list[dict[str, Any]]:
    found = []
    for labels in dict.fromkeys(labels for labels, _ in masks):
        seeds = [seed for other, seed in masks if other == labels][:SEEDS_AT_MOST]
        pairs = [(masks[labels, a], masks[labels, b]) for a, b in itertools.combinations(seeds, 2)]
        if entry := _mean(pairs):
            where = dict(zip(axes, labels, strict=True))
            found.append({"name": "other seed", "where": where, "a": "seed", "b": "other seed", **entry})
    return found


def _labels(masks: Mapping[Any, Any], axes: list[str], index: int) -> list[dict[str, Any]]:
    """Of every two labels of one axis, within each of the first seeds."""
    found = []
    everything = list(dict.fromkeys(labels for labels, _ in masks))
    for one, other in itertools.combinations(everything, 2):
        if [a != b for a, b in zip(one, other, strict=True)] != [number == index for number in range(len(axes))]:
            continue
        seeds = [seed for labels, seed in masks if labels == one and (other, seed) in masks][:SEEDS_AT_MOST]
        if entry := _mean([(masks[one, seed], masks[other, seed]) for seed in seeds]):
            where = {axis: label for number, (axis, label) in enumerate(zip(axes, one, strict=True)) if number != index}
            name = f"other {axes[index]}"
            found.append({"name": name, "where": where, "a": one[index], "b": other[index], **entry})
    return found


def _mean(pairs: list[tuple[Any, Any]]) -> dict[str, Any] | None:
    found = [value for a, b in pairs if (value := overlap(a, b)) is not None]
    if not found:
        return None
    return {
        "jaccard": mean(jaccard for jaccard, _, _ in found),
        "agreement": mean(agree for _, agree, _ in found),
        "positions": found[0][2],
        "n": len(found),
    }
