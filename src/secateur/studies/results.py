"""The outputs of a study, from its plan and its journal: results, answers, linears, masks, samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from secateur.evaluation.metrics import HIGHER, better
from secateur.evaluation.protocol import placed
from secateur.pipeline.store import DIGEST_SHOWN, digest_of
from secateur.studies.cells import Cell, excluded_cells
from secateur.studies.folder import StudyFolder
from secateur.studies.overlaps import mask_overlaps
from secateur.studies.plan import StudyPlan
from secateur.studies.schema import COLUMNS
from secateur.studies.study_file import Study
from secateur.studies.table import Row, Table

DONE, FAILED, MISSING = "done", "failed", "missing"
FIXED = {"seed": pa.int64(), "value": pa.float64(), "seconds": pa.float64(), "peak_gib": pa.float64()}
FIXED |= {"sparsity_reached": pa.float64()}


def write_results(
    plan: StudyPlan, folder: StudyFolder, store: Path, command: str, environment: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Write all files that can be written of what is done so far; returns the answers."""
    rows = shown_rows(plan)
    answers = answer(plan, folder)
    _write_json(folder.path / "study.json", facts(plan, folder, command, environment))
    _write_table(folder.path / "results", results(plan, folder, rows))
    _write_json(folder.path / "answers.json", answers)
    _write_parquet(folder.path / "linears.parquet", _linears(plan, folder), LINEARS)
    _write_json(folder.path / "masks.json", mask_overlaps(plan, folder))
    _write_json(folder.path / "samples.json", _samples(plan, folder))
    return answers


def facts(plan: StudyPlan, folder: StudyFolder, command: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """study.json."""
    spec = plan.study.spec
    records = [folder.cells[digest] for digest in plan.works if digest in folder.cells]
    cost = {name: round(value, 1) for name, value in folder.spent.items()}
    return {
        "question": spec.question,
        "digest": digest_of(plan.spec),
        "model": ", ".join(plan.models),
        "recipe": plan.base.model_dump() | {"seed": None},
        "axes": [
            {"name": name, "labels": list(axis.labels), "values": axis.numbers, "sets": axis.labels}
            for name, axis in spec.axes.items()
        ],
        "repeats": spec.repeats,
        "controls": spec.controls,
        "excluded": excluded_cells(plan.study),
        "exclude": spec.exclude,
        "comparisons": spec.declared,
        "metric": {"name": spec.metric, "better": better(spec.metric)},
        "metrics": spec.all_metrics,
        "evaluation": evaluations(plan),
        "notes": plan.notes,
        "environment": dict(environment),
        "cost": {
            **cost,
            "cells": len(plan.works),
            "done": len(records),
            "failed": sum(digest in folder.failed for digest in plan.works),
            "peak_gib": max((record["peak_gib"] for record in records), default=None),
        },
        "command": command,
    }


def evaluations(plan: StudyPlan) -> list[str]:
    """What the cells are measured on and by which protocol, in words, each once."""
    stages = [plan.known.evaluation(work.cell.recipe) for work in plan.works.values()]
    found = [f"{one.source.name} by {one.protocol}, {placed(one.begin.place, one.protocol)}" for one in stages]
    return list(dict.fromkeys(found))


def shown_rows(plan: StudyPlan) -> list[tuple[dict[str, str], int | None, Cell, str]]:
    """Labels, seed, cell and digest of every row: each cell with each seed; controls once, with an empty label (no seed)
    where an axis (the seed) makes no difference to them."""
    found = [(dict(cell.labels), cell.seed, cell, digest) for cell, digest in plan.cells if not cell.control]
    controls: dict[tuple[str, str], list[Cell]] = {}
    for cell, digest in plan.cells:
        if cell.control:
            controls.setdefault((cell.control, digest), []).append(cell)
    shown: list[tuple[dict[str, str], int | None, Cell, str]] = list(found)
    for (_, digest), cells in controls.items():
        labels = {axis: {cell.labels[axis] for cell in cells} for axis in cells[0].labels}
        seeds = {cell.seed for cell in cells}
        alone = {axis: one.pop() if len(one) == 1 else "" for axis, one in labels.items()}
        shown.append((alone, seeds.pop() if len(seeds) == 1 else None, cells[0], digest))
    return shown


def results(plan: StudyPlan, folder: StudyFolder, rows: list[Any]) -> list[dict[str, Any]]:
    """results.parquet: one row a cell and metric."""
    produced = {name for record in folder.cells.values() for name in record["values"]}
    metrics = [*plan.study.spec.all_metrics, *sorted(produced - set(plan.study.spec.all_metrics))]
    found = []
    for labels, seed, cell, digest in rows:
        record = folder.cells.get(digest)
        error = None if record else folder.failed.get(digest)
        shared = {"cell": digest[:DIGEST_SHOWN], **labels, "seed": seed, "control": cell.control}
        shared |= {"status": DONE if record else FAILED if error else MISSING, "error": error or ""}
        for metric in metrics:
            own = {"metric": metric, "value": record["values"].get(metric) if record else None}
            for name in ("set_digest", "pruned_digest", "evaluation_digest", "seconds", "peak_gib"):
                own[name] = record.get(name) if record else None
            own["sparsity_reached"] = record.get("sparsity") if record else None
            found.append(shared | own)
    return found


def observations(plan: StudyPlan, folder: StudyFolder) -> list[Row]:
    """The rows that comparisons see: every cell with every seed, without the controls."""
    found = []
    for cell, digest in plan.cells:
        if cell.control:
            continue
        record = folder.cells.get(digest, {})
        made = folder.sets.get(plan.works[digest].set_key or "", {})
        found.append(Row(tuple(cell.labels.values()), cell.seed, record.get("values", {}), made.get("facts", {})))
    return found


def answer(plan: StudyPlan, folder: StudyFolder) -> list[dict[str, Any]]:
    """answers.json."""
    return answers_of(plan.study, observations(plan, folder))


def answers_of(study: Study, rows: list[Row]) -> list[dict[str, Any]]:
    """Every comparison on its metric, then on the study's further metrics; the primary one comes first."""
    spec, found = study.spec, []
    axes = {name: list(axis.labels) for name, axis in spec.axes.items()}
    numbers = {name: axis.numbers for name, axis in spec.axes.items()}
    for metric in spec.all_metrics:
        for number, comparison in enumerate(study.comparisons):
            own = comparison.metric or spec.metric
            if comparison.metric and metric != spec.metric:
                continue
            asked = own if metric == spec.metric else metric
            table = Table(axes, numbers, rows, asked, 1.0 if better(asked) == HIGHER else -1.0)
            found.append(comparison.answered(table) | {"primary": not found and number == 0})
    return found


LINEARS = {
    "cell": pa.string(),
    "block": pa.int64(),
    "linear": pa.string(),
    "sparsity": pa.float64(),
    "error": pa.float64(),
}


def _linears(plan: StudyPlan, folder: StudyFolder) -> list[dict[str, Any]]:
    return [
        {"cell": digest[:DIGEST_SHOWN], **linear}
        for digest in plan.works
        for linear in folder.cells.get(digest, {}).get("linears", [])
    ]


def _samples(plan: StudyPlan, folder: StudyFolder) -> dict[str, Any]:
    """By the labels of the axes that make the sets differ, a few texts of the set of the first seed."""
    firsts: dict[str, Cell] = {}
    for cell, digest in plan.cells:
        key = plan.works[digest].set_key
        if key in folder.sets and cell.seed == plan.study.spec.repeats[0]:
            firsts.setdefault(key, cell)
    deciding = [
        axis
        for axis, spec in plan.study.spec.axes.items()
        if any(_calibrates(fields) for fields in spec.labels.values())
    ]
    found: dict[str, Any] = {}
    for key, cell in firsts.items():
        name = ", ".join([*([cell.control] if cell.control else []), *(cell.labels[axis] for axis in deciding)])
        found.setdefault(name or "all cells", folder.sets[key]["shown"])
    return found


def _calibrates(fields: Mapping[str, Any]) -> bool:
    return any(path.startswith(("calibration", "model", "dtype")) for path in fields)


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    axes = [name for name in rows[0] if name not in COLUMNS]
    names = [COLUMNS[0], *axes, *COLUMNS[1:]]
    table = _table(rows, {name: FIXED.get(name, pa.string()) for name in names})
    _replace(path.with_suffix(".parquet"), lambda place: pa_parquet.write_table(table, place))
    _replace(path.with_suffix(".csv"), lambda place: pa_csv.write_csv(table, place))


def _write_parquet(path: Path, rows: list[dict[str, Any]], types: Mapping[str, Any]) -> None:
    _replace(path, lambda place: pa_parquet.write_table(_table(rows, types), place))


def _table(rows: list[dict[str, Any]], types: Mapping[str, Any]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()})


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _replace(path, lambda place: place.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write the file beside its place, then put it there: who reads meanwhile sees the old one whole."""
    partial = path.with_name(f".{path.name}")
    write(partial)
    partial.replace(path)
