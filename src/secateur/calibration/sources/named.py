"""Corpora by name: from a folder of local copies where there is one, else from the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.corpus import CorpusSource
from secateur.calibration.sources.files import KINDS, FileSource
from secateur.calibration.sources.formats import Column, Format
from secateur.calibration.sources.presets import PRESETS, Preset
from secateur.errors import CalibrationError, UsageError

CORPORA = "SECATEUR_CORPORA"
"""The environment variable that names the folder: NAME/train.jsonl.gz, NAME/any.parquet, NAME.jsonl, ..."""

TRAIN, EVALUATION = "train", ("heldout", "test", "validation")
HELD_OUT = re.compile(r"held[-_]?out|(test|valid|validation|val|dev)(?![a-z])", re.IGNORECASE)
"""What the names of files and folders begin with that are never calibrated on."""


class LocalCorpus(FileSource):
    """A corpus by name in the folder of local copies: its training files, or, to evaluate on, its held-out ones.

    Raises ``CalibrationError`` when it has no such file, ``UsageError`` for a split it cannot have.
    """

    def __init__(self, name: str, path: Path, split: str, formats: tuple[Format, ...]) -> None:
        super().__init__(path, formats=formats)
        self.name, self.split = name, split
        if split not in (TRAIN, *EVALUATION):
            raise UsageError(
                f"{name} is read from {path} (because of {CORPORA}), which has the splits {TRAIN} and {', '.join(EVALUATION)}; "
                f"found {split!r}."
            )

    def fingerprint(self) -> str:
        """That it is a local copy, and the SHA-256 of what it holds."""
        return f"local:{super().fingerprint()}"

    def files(self) -> list[Path]:
        found = super().files()
        chosen = [file for file in found if self._held_out(file) == (self.split != TRAIN)]
        if self.split != TRAIN:
            # One of several held-out files: mixed they would be no known text.
            chosen = [file for file in chosen if file.name.startswith(self.split)] or chosen[:1]
        if not chosen:
            kind = "to calibrate on" if self.split == TRAIN else f"to evaluate on (named {', '.join(EVALUATION)}.*)"
            raise CalibrationError(
                f"{self.path}, the local copy of {self.name!r}, has no file {kind}; it has "
                f"{', '.join(file.name for file in found)}. Put one there, or unset {CORPORA} to read the Hub."
            )
        return chosen

    def _held_out(self, file: Path) -> bool:
        return any(map(HELD_OUT.match, file.relative_to(self.path).parts or [file.name]))


def local_copy(name: str) -> Path | None:
    """Where the folder of local copies has the corpus ``name``: a folder, or a file of a kind that can be read."""
    root = os.environ.get(CORPORA)
    if not root:
        return None
    place = Path(root).expanduser()
    if not place.is_dir():
        raise UsageError(f"The environment variable {CORPORA} names {place}, which is no folder; correct or unset it.")
    names = (name, *(PRESETS[name].folders if name in PRESETS else ()))
    for known in names:
        if (place / known).is_dir():
            return place / known
        for kind in KINDS:
            if (place / f"{known}{kind}").is_file():
                return place / f"{known}{kind}"
    return None


def open_corpus(
    name: str, text_key: str = "text", split: str = TRAIN, revision: str | None = None
) -> TextSource | None:
    """The corpus of that name, ``None`` when there is none: a local copy goes before the Hub.

    ``text_key`` other than ``text`` goes before the preset's way to make a row text. Raises ``UsageError`` for a split
    that the corpus does not have.
    """
    preset = PRESETS.get(name)
    own = (preset.format,) if preset else ()
    formats = (Column(text_key),) if text_key != "text" else own
    path = local_copy(name) if "/" not in name else None
    if path is not None:
        found: TextSource = LocalCorpus(name, path, split, tuple(dict.fromkeys([*formats, Column(text_key)])))
    elif preset is None:
        return None
    else:
        found = _streamed(preset, split, revision, formats)
    if preset is not None:
        found.paper_rule = preset.paper
    return found


def _streamed(preset: Preset, split: str, revision: str | None, formats: tuple[Format, ...]) -> CorpusSource:
    known = preset.train if split == TRAIN else preset.heldout if split in EVALUATION else split
    if known is None:
        raise UsageError(
            f"The corpus {preset.name!r} has no held-out split on the Hub, so it cannot be evaluated on; name another text, "
            f"or put a held-out file into {preset.name}/ in a folder that {CORPORA} names."
        )
    name = preset.path + (f":{preset.subset}" if preset.subset else "")
    return CorpusSource(name, "text", known, revision or preset.revision, formats, preset.files)


def __getattr__(name: str) -> Any:
    """``named:c4`` as the registry has it: what makes that corpus."""
    if name in PRESETS:
        return lambda: open_corpus(name)
    raise AttributeError(name)
