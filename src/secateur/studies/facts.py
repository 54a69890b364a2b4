"""Facts of a calibration set that a correlation may name: counts of its manifest, and the measures of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.calibration.sample import read_samples
from secateur.diagnosis import families
from secateur.errors import RecipeError
from secateur.pipeline.calibration_stage import DROPPED, SAMPLES
from secateur.pipeline.components import resolve_model
from secateur.pipeline.profile_inputs import find_reference
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.store import read_manifest
from secateur.registry import suggestion
from secateur.studies.comparisons.correlation import Correlation

COUNTS = ("samples", "tokens", "distinct_tokens", "mean_logprob")
COMPARED = ("similarity", "activations")
"""Families all of whose numbers compare a set with a reference text."""
SHOWN, CHARACTERS = 3, 600


def check_fact(comparison: Correlation, place: str, base: Recipe) -> None:
    """Raise ``RecipeError`` for a fact that no set has, or one that needs a reference text and is given none."""
    known = [*COUNTS, *(name for family in families().values() for name in family.quantities)]
    if comparison.fact not in known:
        raise RecipeError(
            f"{place}: the correlation's fact {comparison.fact!r} is none of a calibration set"
            f"{suggestion(comparison.fact, known)}."
        )
    if comparison.reference is None and needs_reference(comparison.fact):
        raise RecipeError(
            f"{place}: the correlation's fact {comparison.fact!r} compares a set with a text; name that text as its "
            "reference (a source, a file or a data set)."
        )
    if comparison.reference is not None:
        find_reference(comparison.reference, base, resolve_model(base.model, base.revision))


def needs_reference(fact: str) -> bool:
    """Whether a fact compares the set with a text."""
    return family_of(fact) in COMPARED or fact.endswith("_reference")


def family_of(fact: str) -> str | None:
    """The family of measures that gives a fact; ``None`` for a count."""
    return next((name for name, family in families().items() if fact in family.quantities), None)


def counts_of(folder: Path) -> dict[str, float]:
    """Counts of a finished set."""
    samples = read_samples(folder / SAMPLES)
    ids = [token for sample in samples for token in sample.token_ids]
    found = {"samples": float(len(samples)), "tokens": float(len(ids)), "distinct_tokens": float(len(set(ids)))}
    scores = [sample.mean_logprob for sample in samples if sample.mean_logprob is not None]
    return found | ({"mean_logprob": sum(scores) / len(scores)} if len(scores) == len(samples) else {})


def shown_samples(folder: Path) -> dict[str, Any]:
    """A few of a set's texts, and of those dropped with the reason."""
    manifest = read_manifest(folder) or {}
    dropped = [
        {"text": _text(entry), "reason": entry.get("reason"), "value": entry.get("value")}
        for entry in _entries(folder / DROPPED)
    ]
    return {
        "kept": [_text(entry) for entry in _entries(folder / SAMPLES)],
        "dropped": dropped,
        "tokens": manifest.get("tokens"),
        "samples": manifest.get("samples"),
    }


def _entries(path: Path) -> list[dict[str, Any]]:
    import json

    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line, _ in zip(stream, range(SHOWN), strict=False)]


def _text(entry: Mapping[str, Any]) -> str:
    return str(entry.get("text", ""))[:CHARACTERS]
