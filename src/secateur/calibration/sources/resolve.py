"""From what the user wrote to a source: a registered name, a file, or a Hub data set."""

from __future__ import annotations

import json
import re
from pathlib import Path

from secateur.calibration.sources import SOURCES
from secateur.calibration.sources.base import Source, TextSource
from secateur.calibration.sources.corpus import CorpusSource
from secateur.calibration.sources.files import KINDS, FileSource
from secateur.calibration.sources.named import open_corpus
from secateur.calibration.sources.presets import PRESETS
from secateur.errors import CalibrationError, UsageError

WITH_ARGUMENT = {"file": FileSource, "corpus": CorpusSource}
SELF, MIXTURE = "self", "mixture"


def resolve_source(name: str, text_key: str = "text", split: str = "train", revision: str | None = None) -> Source:
    """The source called ``name``: ``prose``, ``c4``, a path, ``ORG/NAME[:SUBSET]``, or explicitly ``file:…``, ``corpus:…``.

    Raises ``UnknownNameError`` with the nearest names when it is none of these.
    """
    if name in (SELF, MIXTURE):
        raise UsageError(f"Text is needed here (prefixes, or evaluation); {name!r} is not a source of it.")
    kind, _, argument = name.partition(":")
    if kind == "file" and argument:
        _refuse_model(argument)
        return FileSource(argument, text_key)
    if kind == "corpus" and argument:
        return CorpusSource(argument, text_key, split, revision)
    if kind in WITH_ARGUMENT:
        raise UsageError(
            f"The source {kind!r} needs to be told which: write {kind}:{'PATH' if kind == 'file' else 'ORG/NAME'}."
        )
    if name in PRESETS:
        return open_corpus(name, text_key, split, revision) or SOURCES.load(name)()
    if name not in SOURCES.entries():
        if Path(name).expanduser().exists() or name.endswith(KINDS):
            _refuse_model(name)
            return FileSource(name, text_key)
        local = open_corpus(name, text_key, split, revision)
        if local is not None:
            return local
        if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
            return CorpusSource(name, text_key, split, revision)
    return SOURCES.load(name)()


def resolve_text_source(
    name: str,
    text_key: str = "text",
    split: str = "train",
    revision: str | None = None,
    use: str = "text (for prefixes, evaluation or a comparison)",
) -> TextSource:
    """As ``resolve_source``, but only sources of text: raises ``UsageError`` for random tokens and generated text,
    ``CalibrationError`` for a file that is not there. ``use``: what the text is for, in messages."""
    source = resolve_source(name, text_key, split, revision)
    if not isinstance(source, TextSource):
        raise UsageError(f"Text is needed here (prefixes, or evaluation), and the source {name!r} has none.")
    if isinstance(source, FileSource) and not source.path.exists():
        raise CalibrationError(f"There is no file or folder {source.path}, which was named as {use}.")
    return source


def _refuse_model(name: str) -> None:
    """Raise ``UsageError`` for a model's folder, whose files would be read as text or found wanting."""
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return
    what = "a pruned model" if _kind(folder) == "pruned" else "a model"
    raise UsageError(
        f"The folder {name} is {what}, neither text nor a calibration set; `secateur generate {name} --out SET` lets it write one."
    )


def _kind(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("kind") if isinstance(found, dict) else None
