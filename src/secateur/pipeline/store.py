"""Output folders: named or marked by the digest of their spec, built beside their place, complete or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secateur.errors import StoreError

MANIFEST = "manifest.json"
DEFAULT_STORE = "secateur-store"
DIGEST_SHOWN = 12
AT_ONCE = 0.2
"""Seconds that a lock may take to get, where nobody waits for another process to end."""

_told: ContextVar[Callable[[str], None] | None] = ContextVar("told", default=None)


@contextmanager
def waiting(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside, what another process is making is waited for, and then used; ``tell`` is told so, in a sentence."""
    before = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(before)


@contextmanager
def locked(lock: FileLock, what: str) -> Iterator[None]:
    """Hold ``lock``. While another process has it, wait if that is allowed (``waiting``), else raise ``filelock.Timeout``."""
    try:
        lock.acquire(timeout=AT_ONCE)
    except Timeout:
        tell = _told.get()
        if tell is None:
            raise
        tell(f"Another process is making {what} right now (lock {lock.lock_file}); waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def digest_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a spec's canonical JSON."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes. Files in the Hub cache are named by it, and are not read again."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished folder; ``None`` when the folder is not one of ours, or not finished."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "spec_digest" in found else None


def partial_folder(final: Path, digest: str) -> Path:
    """Where the folder is built before it gets its name."""
    return final.parent / f".{final.name}.{digest[:DIGEST_SHOWN]}.partial"


def finished(final: Path, spec: Mapping[str, Any]) -> bool:
    """Whether ``final`` holds the finished output of ``spec``. Raises ``StoreError`` when it holds anything else."""
    if not final.exists():
        return False
    manifest = read_manifest(final)
    if manifest is None:
        if final.is_dir() and not any(final.iterdir()):
            return False
        raise StoreError(
            f"The output folder {final} exists and was not made by Secateur; nothing in it is overwritten. Give another "
            "--out, or move it away."
        )
    if manifest["spec_digest"] != digest_of(spec):
        raise StoreError(_taken(final, _differences(manifest.get("spec", {}), spec)))
    return True


def build(
    final: Path, spec: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]], scratch: Sequence[str] = ()
) -> bool:
    """Make the output folder ``final`` of ``spec`` unless it is there already; returns whether it was made now.

    ``make`` fills a folder beside it and returns facts for the manifest; it is called again on what an interrupted run
    left behind. The manifest is written last, then the files named ``scratch`` go, then the folder gets its name.
    Raises ``StoreError`` when ``final`` is taken, another process is at it (but see ``waiting``), or the disk fails;
    nothing half-written is ever called ``final``.
    """
    final = final.absolute()
    if finished(final, spec):
        return False
    if final == Path.cwd():
        raise StoreError(f"The output folder cannot be the working directory {final} itself; give a folder inside it.")
    partial = partial_folder(final, digest_of(spec))
    lock = FileLock(partial.with_suffix(".lock"))
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(lock, str(final)):
            if finished(final, spec):
                shutil.rmtree(partial, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
                return False
            partial.mkdir(exist_ok=True)  # who had the lock before may have failed, and taken it away
            if read_manifest(partial) is None:
                complete(partial, spec, make(partial), scratch)
            for name in scratch:
                (partial / name).unlink(missing_ok=True)
            if not finished(final, spec) and final.exists():
                final.rmdir()
            partial.replace(final)
            Path(lock.lock_file).unlink(missing_ok=True)
            return True
    except Timeout as error:
        raise StoreError(
            f"Another process is making {final} right now (lock {lock.lock_file}). Wait for it and run the same command "
            "again: what it finished will be used."
        ) from error
    except OSError as error:
        raise disk_error(error, partial) from error


def complete(partial: Path, spec: Mapping[str, Any], facts: Mapping[str, Any], scratch: Sequence[str] = ()) -> None:
    """Write the manifest of a folder that is filled; files named ``scratch`` are left out of it."""
    files = sorted(path for path in partial.rglob("*") if path.is_file() and path.name not in {MANIFEST, *scratch})
    digests = {path.relative_to(partial).as_posix(): file_digest(path) for path in files}
    manifest = {"spec_digest": digest_of(spec), "spec": dict(spec), **facts, "files": digests}
    unnamed = partial / f".{MANIFEST}"
    _write_durably(unnamed, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    unnamed.replace(partial / MANIFEST)


def refuse_taken(final: Path, known: Mapping[str, Any]) -> None:
    """Raise ``StoreError`` early when ``final`` holds something else, going by the part of the spec that is known."""
    manifest = read_manifest(final)
    if manifest is None:
        finished(final, known)
    else:
        differences = _differences({key: manifest["spec"].get(key) for key in known}, known)
        if differences:
            raise StoreError(_taken(final, differences))


def _taken(final: Path, differences: str) -> str:
    return (
        f"The output folder {final} holds the result of another run: {differences}. Give another --out, or delete it."
    )


def check_space(folder: Path, needed: int) -> None:
    """Raise ``StoreError`` when the disk of ``folder`` (or its nearest existing parent) has less than ``needed`` bytes."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StoreError(
            f"Saving to {folder} takes {needed / 2**20:,.0f} MiB, but the disk of {place} has {free / 2**20:,.0f} MiB free. "
            "Free some space, or give another --out or --store; nothing was written."
        )


def disk_error(error: OSError, place: Path) -> StoreError:
    """What an operating system's error while writing under ``place`` means."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the disk is read-only",
    }
    reason = reasons.get(error.errno or 0, (error.strerror or str(error)).lower())
    return StoreError(
        f"Writing {error.filename or place} failed: {reason}. What was finished so far is kept in {place}; mend that and "
        "run the same command again to go on from there, or delete that folder."
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    found = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            inner = _differences(one, other, f"{prefix}{key}.")
            found += [inner] if inner else []
        elif one != other:
            found.append(f"{prefix}{key} was {_short(one)}, now {_short(other)}")
    return ", ".join(found[:4])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
