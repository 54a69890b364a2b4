"""From the name of a file or a folder to its format, and to the rows in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secateur.calibration.exchange import FORMATS
from secateur.calibration.exchange.base import Format, Row
from secateur.calibration.exchange.hf import MARKS
from secateur.errors import UsageError


def formats() -> dict[str, type[Format]]:
    """Every format by name."""
    return {name: FORMATS.load(name) for name in FORMATS.entries()}


def named_format(place: Path) -> str | None:
    """The format whose suffix the place's name has, if one has it."""
    return next(
        (name for name, kind in formats().items() if kind.suffixes and place.name.endswith(kind.suffixes)), None
    )


def rows_at(place: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file or a folder, and where each stands. Raises ``UsageError`` where there are none to be read."""
    if not place.exists():
        raise UsageError(f"There is no file or folder {place} to import.")
    if place.is_file():
        yield from _reader(place).read(place)
    elif any((place / mark).is_file() for mark in MARKS):
        yield from FORMATS.load("hf")().read(place)
    else:
        for file in _files_in(place):
            yield from _reader(file).read(file)


def _reader(file: Path) -> Format:
    name = named_format(file)
    if name is None:
        known = ", ".join(suffix for kind in formats().values() for suffix in kind.suffixes)
        raise UsageError(f"{file} is of no kind that can be imported; known: {known}, or a folder that datasets saved.")
    return FORMATS.load(name)()


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder, which must all be of one format."""
    known = formats()
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = named_format(path)
        if name and known[name].writes:  # settings and models are kept in json and torch files: those are given by name
            found.setdefault(name, []).append(path)
    if not found:
        raise UsageError(
            f"The folder {folder} is no data set that datasets saved, and has no parquet or jsonl file in it."
        )
    if len(found) > 1:
        listed = ", ".join(f"{paths[0].name} ({name})" for name, paths in found.items())
        raise UsageError(f"The folder {folder} has data in several formats: {listed}. Give the one to import.")
    return next(iter(found.values()))
