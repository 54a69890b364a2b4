"""A study's folder: the file as it was given, and an append-only journal of what was done, which is all that a resumed
study needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from secateur import __version__
from secateur.errors import StoreError
from secateur.journal import Journal
from secateur.pipeline.store import MANIFEST, complete, digest_of, disk_error, locked, read_manifest, waiting

JOURNAL, STUDY_FILE, LOCK, FORMAT = "journal.jsonl", "study.yaml", ".lock", 1


class StudyFolder:
    """What is known of a study so far: ``cells`` done by digest, ``failed`` with their last sentence, ``sets`` by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.sets: dict[str, dict[str, Any]] = {}
        self.spent = {"seconds": 0.0, "cpu_seconds": 0.0}
        self._journal: Journal | None = None

    @contextmanager
    def opened(self, spec: dict[str, Any], text: str, tell: Any) -> Iterator[StudyFolder]:
        """Hold the folder, made if need be; another process that has it is waited for.

        Raises ``StoreError`` when it holds another study, something else, or a study of another version.
        """
        try:
            self.check(spec)
            self.path.mkdir(parents=True, exist_ok=True)
            with waiting(tell), locked(FileLock(self.path / LOCK), str(self.path)):
                self.read(spec, write=True)
                (self.path / MANIFEST).unlink(missing_ok=True)
                (self.path / STUDY_FILE).write_text(text, encoding="utf-8")
                yield self
        except OSError as error:
            raise disk_error(error, self.path) from error

    def check(self, spec: dict[str, Any]) -> None:
        """Raise ``StoreError`` when the folder cannot be that of the study ``spec``."""
        if self.path.exists() and not (self.path / JOURNAL).exists():
            left = (
                [path.name for path in self.path.iterdir() if path.name != LOCK] if self.path.is_dir() else ["a file"]
            )
            if left:
                raise StoreError(
                    f"The output folder {self.path} exists and holds no study (it has {left[0]}); nothing in it is "
                    "overwritten. Give another --out, or move it away."
                )
        self.read(spec)

    def read(self, spec: dict[str, Any], write: bool = False) -> None:
        """What the journal says. ``write``: begin one where there is none, and go on with it."""
        path = self.path / JOURNAL
        self.cells, self.failed, self.sets = {}, {}, {}
        self.spent = dict.fromkeys(self.spent, 0.0)
        entries = Journal(path).entries if write else _entries(path)
        if entries:
            self._check_first(entries[0], spec)
        for entry in entries[1:]:
            self._take(entry)
        if write:
            self._journal = Journal(path)
            if not entries:
                first = {"format": FORMAT, "secateur": __version__, "study": digest_of(spec), "spec": spec}
                self._journal.append(first)

    def _check_first(self, first: dict[str, Any], spec: dict[str, Any]) -> None:
        if first.get("format") != FORMAT:
            raise StoreError(
                f"The study in {self.path} was written by Secateur {first.get('secateur', 'of unknown version')} (format "
                f"{first.get('format')}); this is {__version__} (format {FORMAT}). Go on with that version, or give another "
                "--out: nothing in the folder is changed."
            )
        if first["study"] != digest_of(spec):
            old = first.get("spec", {})
            changed = [key for key in spec if old.get(key) != spec[key]] or ["its cells"]
            raise StoreError(
                f"The folder {self.path} holds another study: {', '.join(changed)} changed since. Give another --out; cells "
                "that the store has are not run again."
            )

    def _take(self, entry: dict[str, Any]) -> None:
        if "set" in entry:
            self.sets[entry["set"]] = entry["record"]
        elif entry.get("status") == "done":
            self.cells[entry["cell"]] = entry["record"]
            self.failed.pop(entry["cell"], None)
        elif "cell" in entry:
            self.failed[entry["cell"]] = entry["error"]
        for key in self.spent:
            self.spent[key] += entry.get(key, 0.0)

    def _add(self, entry: dict[str, Any]) -> None:
        assert self._journal is not None
        self._journal.append(entry)
        self._take(entry)

    def done(self, digest: str, record: dict[str, Any]) -> None:
        self._add({"cell": digest, "status": "done", "record": record})

    def fail(self, digest: str, error: str) -> None:
        self._add({"cell": digest, "status": "failed", "error": error})

    def made(self, key: str, record: dict[str, Any]) -> None:
        self._add({"set": key, "record": record})

    def spend(self, seconds: float, cpu: float) -> None:
        """Note wall and CPU seconds that came on top."""
        self._add({"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)})

    def finish(self, spec: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write the manifest."""
        complete(self.path, spec, {"kind": "study", **facts}, [LOCK])


def _entries(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal that another process may be writing."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):
            break
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


__all__ = ["JOURNAL", "StudyFolder", "read_manifest"]
