"""What making calibration sets will take, going by the sets of the same kind that the store has."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.pipeline.store import read_manifest

Kind = tuple[Any, ...]


def seconds_for(specs: Sequence[Mapping[str, Any]], store: Path) -> tuple[float, int]:
    """Seconds that sets of these specs take, as far as the store tells, and of how many of them it does not."""
    known = _known(store)
    rates = [known.get(_kind(spec)) for spec in specs]
    seconds = [
        statistics.median(rate) * spec["samples"] * spec["length"]
        for rate, spec in zip(rates, specs, strict=True)
        if rate
    ]
    return sum(seconds), len(specs) - len(seconds)


def _known(store: Path) -> dict[Kind, list[float]]:
    """Seconds per token of every finished set, by kind."""
    found: dict[Kind, list[float]] = {}
    for manifest in filter(None, map(read_manifest, (store / "calibration").glob("*"))):
        if manifest.get("kind") == "calibration" and manifest.get("tokens"):
            seconds = sum(phase["seconds"] for phase in manifest["phases"].values())
            found.setdefault(_kind(manifest["spec"]), []).append(seconds / manifest["tokens"])
    return found


def _kind(spec: Mapping[str, Any]) -> Kind:
    """What makes sets cost alike: the model, where the text is from, and how samples are chosen."""
    return spec.get("model"), spec.get("source"), (spec.get("selection") or {}).get("name")
