"""Reads the folder of a study, finished or not, and says what is wrong with one that cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from secateur.errors import UsageError
from secateur.pipeline.store import MANIFEST, file_digest, read_manifest
from secateur.reports.study_facts import Answer, Cell, Facts, Study

STUDY, ANSWERS, RESULTS, LINEARS, MASKS, SAMPLES, TEXT = (
    "study.json",
    "answers.json",
    "results.parquet",
    "linears.parquet",
    "masks.json",
    "samples.json",
    "study.yaml",
)
COLUMNS = ("cell", "seed", "control", "status", "error", "metric", "value")


def read_study(folder: Path) -> Study:
    """Read all files of a study. Raises ``UsageError`` when it is none, has no results yet, or a file is damaged."""
    _is_study(folder)
    manifest = read_manifest(folder)
    facts = _checked(folder, STUDY, Facts, manifest)
    if not (folder / RESULTS).exists():
        why = "it is finished by its manifest, so the file was lost: run the study again" if manifest else (
            "no cell has finished yet: wait, or run the study again to go on"
        )  # fmt: skip
        raise UsageError(f"{folder} has no {RESULTS}; {why}.")
    cells = _cells(folder, facts, _rows(folder / RESULTS, manifest, (*COLUMNS, *(axis.name for axis in facts.axes))))
    linears: list[dict[str, Any]] = []
    if (folder / LINEARS).exists():
        table = _rows(folder / LINEARS, manifest, ("cell", "block", "linear", "error"))
        linears = table.to_pylist()
    text = (folder / TEXT).read_text(encoding="utf-8", errors="replace") if (folder / TEXT).exists() else ""
    return Study(
        folder=folder,
        facts=facts,
        answers=_checked(folder, ANSWERS, list[Answer], manifest, []),
        cells=cells,
        linears=linears,
        masks=_checked(folder, MASKS, dict[str, Any], manifest, {}),
        samples=_checked(folder, SAMPLES, dict[str, dict[str, Any]], manifest, {}),
        manifest=manifest,
        text=text,
        notes=_notes(folder, facts, cells, manifest),
    )


def _is_study(folder: Path) -> None:
    if (folder / STUDY).is_file():
        return
    what = f"{folder} is not a study's folder"
    if not folder.exists():
        begun = sorted(folder.absolute().parent.glob(f".{folder.name}.*.partial"))
        if begun and (begun[0] / STUDY).is_file():
            raise UsageError(
                f"There is no folder {folder} yet: its study is not finished. Report on {begun[0]} instead."
            )
        raise UsageError(f"{what}: there is no such folder.")
    if not folder.is_dir():
        raise UsageError(f"{what}: there is a file, not a folder. Give the folder that `secateur study` wrote.")
    manifest = read_manifest(folder)
    if manifest:
        raise UsageError(f"{what}: its manifest says {manifest.get('kind', 'nothing of its kind')!r}.")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{STUDY}"))
    hint = (
        f" Studies inside it: {', '.join(inside[:5])}." if inside else " Give the folder that `secateur study` wrote."
    )
    raise UsageError(f"{what}: it has no {STUDY}.{hint}")


def _checked(folder: Path, name: str, kind: Any, manifest: Mapping[str, Any] | None, absent: object = None) -> Any:
    """A JSON file as ``kind``; ``absent`` when there is no such file."""
    path = folder / name
    if absent is not None and not path.exists():
        return absent
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        found = "" if first["type"] == "missing" else f", found {_short(first['input'])}"
        raise UsageError(f"{path}: {place}: {first['msg']}{found}.{_version(manifest)}") from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}. Run the study again; what it finished is kept.") from error


def _rows(path: Path, manifest: Mapping[str, Any] | None, needed: Sequence[str]) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{path} is damaged: {reason}. Run the study again; what it finished is kept.") from error
    absent = [name for name in needed if name not in table.column_names]
    if absent:
        had = ", ".join(dict.fromkeys(table.column_names))
        raise UsageError(f"{path} has no column {absent[0]!r}; it has {had}.{_version(manifest)}")
    return table


@cache
def _own_version() -> str:
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "an unknown version"


def _version(manifest: Mapping[str, Any] | None) -> str:
    """Who wrote it, where that may be why it cannot be read."""
    written = (manifest or {}).get("secateur", "an unknown version of Secateur")
    if written == _own_version():
        return ""
    return f" The folder was written by {written}, this is {_own_version()}: report with that version, or run the study again."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _cells(folder: Path, facts: Facts, table: Any) -> list[Cell]:
    """Rows to cells. A name may be both an axis and a column of the results: the first column is the axis."""
    columns: dict[str, list[Any]] = {}
    for index, name in enumerate(table.column_names):
        columns.setdefault(name, table.column(index).to_pylist())
    names = {axis.name for axis in facts.axes}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for number in range(table.num_rows):
        row = {name: values[number] for name, values in columns.items()}
        where = {axis.name: axis.label(row[axis.name]) for axis in facts.axes}
        where = {name: label for name, label in where.items() if label}
        plain = {key: "" if row[key] is None else str(row[key]) for key in ("cell", "seed", "control")}
        one = found.setdefault((*plain.values(), *where.values()), {"row": row, "where": where, "values": {}, **plain})
        if row["metric"]:
            one["values"][row["metric"]] = _number(folder, row)
    return [
        Cell(
            digest=one["cell"],
            where=one["where"],
            seed=one["seed"],
            control=one["control"],
            status=one["row"]["status"] or "missing",
            error=one["row"]["error"] or "",
            values=one["values"],
            facts={key: value for key, value in one["row"].items() if key not in (*COLUMNS, *names)},
        )
        for one in found.values()
    ]


def _number(folder: Path, row: Mapping[str, Any]) -> float | None:
    value = row["value"]
    if value is None or isinstance(value, int | float):
        return None if value is None or not math.isfinite(value) else float(value)
    raise UsageError(
        f"{folder / RESULTS}: the value of {row['metric']!r} of cell {row['cell']} is {_short(value)}, no number."
    )


def _notes(folder: Path, facts: Facts, cells: Sequence[Cell], manifest: Mapping[str, Any] | None) -> list[str]:
    notes = list(facts.notes)
    if manifest is None:
        total, done = (facts.cost.get(name) for name in ("cells", "done"))
        if total is None or done is None:
            total, done = len(cells), sum(cell.status == "done" for cell in cells)
        notes.append(
            f"This study is not finished: {done} of {total} cells are done, and every number here may still change."
        )
    else:
        written = manifest.get("secateur")
        if written and written != _own_version():
            notes.append(f"The study was run by Secateur {written}, this page was made by {_own_version()}.")
        recorded = manifest.get("files", {})
        read = (STUDY, ANSWERS, RESULTS, LINEARS, MASKS, SAMPLES, TEXT)
        changed = [
            name
            for name in read
            if name in recorded and not ((folder / name).exists() and file_digest(folder / name) == recorded[name])
        ]
        if changed:
            notes.append(f"Changed or lost since the study finished, by {MANIFEST}: {', '.join(changed)}.")
    failed = sum(cell.status == "failed" for cell in cells)
    missing = sum(cell.status not in ("done", "failed") for cell in cells)
    if failed or missing:
        told = " and ".join(f"{count} {what}" for count, what in ((failed, "failed"), (missing, "missing")) if count)
        notes.append(f"Of {len(cells)} cells, {told}; they are left out, never counted as 0 (see Holes).")
    return notes
