"""What a planned study is and how far it has come, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.studies.cells import excluded_cells
from secateur.studies.folder import StudyFolder
from secateur.studies.plan import StudyPlan
from secateur.studies.price import price
from secateur.studies.run import is_cached


def overview(plan: StudyPlan, store: Path, out: Path | None) -> dict[str, Any]:
    """Everything that ``secateur check`` and ``--dry-run`` say of a study. A failed cell is also one to run."""
    store, spec = store.absolute(), plan.study.spec
    folder = StudyFolder((out or plan.folder(store)).absolute())
    folder.check(plan.spec)
    cached = [digest for digest, work in plan.works.items() if digest in folder.cells or is_cached(store, work)]
    todo = [digest for digest in plan.works if digest not in cached]
    failed = [digest for digest in todo if digest in folder.failed]
    found = price(plan, todo, store)

    def told(digests: list[str]) -> list[dict[str, str]]:
        return [{"cell": plan.works[digest].name, "said": plan.works[digest].cell.said()} for digest in digests]

    return {
        "question": spec.question,
        "models": plan.models,
        "axes": {name: list(axis.labels) for name, axis in spec.axes.items()},
        "repeats": spec.repeats,
        "controls": spec.controls,
        "comparisons": [one.question or one.asked() for one in plan.study.comparisons],
        "metrics": spec.all_metrics,
        "notes": plan.notes,
        "folder": str(folder.path),
        "cells": len(plan.works),
        "sets": len(plan.sets),
        "excluded": excluded_cells(plan.study),
        "cached": told(cached),
        "to_run": told(todo),
        "failed": [
            entry | {"error": folder.failed[digest]} for entry, digest in zip(told(failed), failed, strict=True)
        ],
        "expected": {"sentence": found.sentence(), "seconds": found.seconds, "peak_bytes": found.peak_bytes},
    }
