"""What a pruning stage's manifest says about its calibration data and its records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.methods.base import Method
from secateur.pipeline.calibrate import load_set
from secateur.pipeline.prune import PruningStage
from secateur.pruning.linear import FALLBACK
from secateur.pruning.records import LinearRecord


def calibration_facts(calibration: Path | None) -> dict[str, Any] | None:
    """The calibration set a model was pruned with."""
    if calibration is None:
        return None
    found = load_set(calibration)
    return {
        "folder": str(calibration.resolve()),
        "set_digest": found.digest,
        "samples": len(found.samples),
        "tokens": found.tokens,
    }


def notes(stage: PruningStage) -> list[str]:
    """What a user should know of the model before it is pruned: what stays dense, and what the model does not load."""
    told = [str(left) for left in stage.plan.left]
    strays = stage.skeleton.stored.strays
    if strays:
        listed = ", ".join(strays[:3]) + (", ..." if len(strays) > 3 else "")
        told.append(
            f"{len(strays):,} stored tensors are none that transformers loads, and are kept as they are: {listed}."
        )
    return told


def warnings(records: Sequence[LinearRecord], method: Method) -> list[str]:
    """What a user should know about the statistics: few tokens for their width, raised damping."""
    found = []
    asked = getattr(method, "damping", None)
    for record in records:
        if asked is not None and record.notes.get("damping", asked) > asked:
            found.append(
                f"{record.name}: its Gram matrix was singular; {record.notes['damping']:g} times its mean diagonal was added "
                f"instead of {asked:g} (condition {record.notes['condition']:.1e})."
            )
    few = [record for record in records if "condition" in record.notes and record.tokens < record.inputs]
    if few:
        found.append(
            f"{len(few)} linears have more inputs than calibration tokens (e.g. {few[0].name}: {few[0].inputs:,} inputs, "
            f"{few[0].tokens:,} tokens), so their Gram matrices are of low rank; use more samples."
        )
    starved = [record for record in records if FALLBACK in record.notes]
    if starved:
        listed = ", ".join(f"{record.name} ({record.tokens:,} tokens)" for record in starved[:4])
        found.append(
            f"{len(starved)} linears of experts saw too few tokens (pruning.min_expert_tokens) and were pruned by "
            f"magnitude: {listed}{', ...' if len(starved) > 4 else ''}. Use more samples."
        )
    return found


def left_behind(names: Sequence[str]) -> list[str]:
    """What a user should know about files of the model that its pruned copy goes without."""
    if not names:
        return []
    return [
        f"Left behind in the copy, since transformers does not load it from this model: {', '.join(names[:6])}"
        f"{', ...' if len(names) > 6 else ''}."
    ]
