"""Evaluation data in a folder: NAME/test.jsonl.gz, NAME/validation.jsonl, NAME/data.jsonl, NAME.jsonl ..."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import UsageError
from secateur.evaluation.local_rows import COLUMNS, Columns

KINDS = (".jsonl", ".jsonl.gz")
SCORED = ("test", "validation", "data", "")
SHOWN = ("dev", "train")


def local_file(folder: Path, task: str, stems: Sequence[str] = SCORED) -> Path | None:
    """The file of ``task`` in ``folder`` whose questions are scored (or, with ``SHOWN``, shown as examples)."""
    for stem in stems:
        for kind in KINDS:
            for path in (folder / task / f"{stem or task}{kind}", *([] if stem else [folder / f"{task}{kind}"])):
                if path.is_file():
                    return path
    return None


def check_local(folder: Path, task: str, fewshot: int) -> list[Path]:
    """The files of ``task`` in ``folder``: what is scored, then what is shown. Raises ``UsageError`` when one is not there."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} to read evaluation tasks from; correct evaluation.tasks_from.")
    if task not in COLUMNS:
        raise UsageError(
            f"The task {task!r} cannot be read from {folder}: without a definition of its own there, that is known for "
            f"{', '.join(sorted(COLUMNS))}. Put a YAML file in lm-eval's form with 'task: {task}' into {folder}, or leave out "
            "evaluation.tasks_from to read it from the Hub."
        )
    scored = local_file(folder, task)
    if scored is None:
        names = ", ".join(f"{task}/{stem or task}{KINDS[0]}" for stem in SCORED)
        raise UsageError(
            f"The task {task!r} is not in {folder}: none of {names} (or .gz) is there. Put its file there, leave the task "
            "out, or leave out evaluation.tasks_from to read it from the Hub."
        )
    shown = local_file(folder, task, SHOWN)
    if fewshot and shown is None:
        names = ", ".join(f"{task}/{stem}{KINDS[0]}" for stem in SHOWN)
        raise UsageError(
            f"The task {task!r} is asked for with {fewshot} examples shown, but {folder} has none of {names} (or .gz) to "
            "take them from. Put one there, or ask for fewshot: 0."
        )
    return [scored, *([shown] if fewshot and shown else [])]


def data_files(config: Mapping[str, Any]) -> list[Path]:
    """The local files that a task's own definition names (``dataset_kwargs.data_files``); addresses and patterns are left
    to ``datasets``."""
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    found = [named] if isinstance(named, str) else list(named.values()) if isinstance(named, Mapping) else list(named)
    flat = [path for entry in found for path in ([entry] if isinstance(entry, str) else entry)]
    return [Path(path) for path in flat if "://" not in path and not set(path) & set("*?[")]


def file_facts(path: Path) -> dict[str, str]:
    """Name and SHA-256 of the rows, for digests and records; packed or not, the same rows give the same."""
    unpack: Any = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rb") as stream:
        return {"file": path.name.removesuffix(".gz"), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def read_rows(path: Path, columns: Columns) -> list[dict[str, Any]]:
    """The rows of a file in the task's own columns. Raises ``UsageError`` naming file and line for anything else."""
    unpack: Any = gzip.open if path.suffix == ".gz" else open
    rows: list[dict[str, Any]] = []
    try:
        with unpack(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UsageError(f"{path}, line {number}, holds a {type(row).__name__}, not an object.")
                    rows.append(row)
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON lines after {len(rows):,} of them: {error}.") from error
    try:
        found = columns.rows(rows)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UsageError(
            f"{path} has a row that is not like its first: {type(error).__name__} {error}. Mend the file, or take another."
        ) from error
    if isinstance(found, str):
        raise UsageError(f"{path} {found}. Name its keys so, or leave out evaluation.tasks_from to read the Hub.")
    return found
