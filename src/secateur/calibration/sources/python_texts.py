"""The texts that lie on every machine with Python: the standard library, installed packages, reference prose.

They make an offline analogue of a pre-training study. The bundled reference model was trained on the ``train``
side of the standard library, so for it

* ``stdlib-train`` is its true training data,
* ``stdlib-heldout`` is the same kind of text, never trained on (evaluation only),
* ``site-packages`` is the same kind of text by other writers,
* ``prose`` is the language reference (``pydoc_data.topics``), English that was kept out of the training;
  ``prose-train`` and ``prose-heldout`` are its two sides, to calibrate any model on and to evaluate it on.

The splits are by the SHA-256 of a file's path, or of a topic's name, so they are the same on every machine, and for every
Python version that has the same files and topics.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from secateur.calibration.sources.base import TextSource

HELDOUT_ONE_IN = 20
"""One file in this many is held out."""

TOPICS_ONE_IN = 3
"""One topic in this many is held out, of those that share no paragraph with another."""
LONG_PARAGRAPH = 60
"""Characters from which a paragraph that two topics have is no chance."""

SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", "pydoc_data", "encodings", "dist-packages"})
"""``pydoc_data`` is the prose source; ``encodings`` holds near-identical generated tables that would leak across
the split and flatter the held-out perplexity."""

MAX_FILE_BYTES = 1_000_000


def split_of(name: str, one_in: int = HELDOUT_ONE_IN) -> str:
    """``"heldout"`` or ``"train"``, from the SHA-256 of a POSIX path relative to the library's root, or a topic's name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "heldout" if number % one_in == 0 else "train"


def python_files(root: Path) -> Iterator[tuple[str, str]]:
    """``(relative POSIX path, text)`` of the Python files under ``root``, sorted by path; each distinct text once.

    Files that are empty, larger than ``MAX_FILE_BYTES`` or not UTF-8 are passed over, as are ``SKIPPED_FOLDERS``.
    """
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        try:
            if not 0 < path.stat().st_size <= MAX_FILE_BYTES:
                continue
            raw = path.read_bytes()
            text = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(raw).digest()
        if digest not in seen:
            seen.add(digest)
            yield relative.as_posix(), text


def stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


class StdlibTrain(TextSource):
    """Python's standard library: what the reference model was trained on."""

    name = "stdlib-train"

    def texts(self) -> Iterator[tuple[str, str]]:
        return ((path, text) for path, text in python_files(stdlib_root()) if split_of(path) == "train")


class StdlibHeldout(TextSource):
    """The library's held-out files: for evaluation only."""

    name = "stdlib-heldout"

    def texts(self) -> Iterator[tuple[str, str]]:
        return ((path, text) for path, text in python_files(stdlib_root()) if split_of(path) == "heldout")


class SitePackages(TextSource):
    """Sources of the installed packages: code by other writers."""

    name = "site-packages"

    def texts(self) -> Iterator[tuple[str, str]]:
        return python_files(Path(sysconfig.get_paths()["purelib"]))


class Prose(TextSource):
    """The Python language reference (what ``help()`` prints), one document a topic; never in the reference model's data."""

    name = "prose"

    def texts(self) -> Iterator[tuple[str, str]]:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        return ((name, re.sub(r"\n{3,}", "\n\n", topics[name]).strip() + "\n") for name in sorted(topics))


class ProseTrain(Prose):
    """The topics of prose to calibrate on where prose-heldout is evaluated on."""

    name = "prose-train"

    def texts(self) -> Iterator[tuple[str, str]]:
        return _topics("train")


class ProseHeldout(Prose):
    """The other topics of prose, which share no paragraph with those: for evaluation only."""

    name = "prose-heldout"

    def texts(self) -> Iterator[tuple[str, str]]:
        return _topics("heldout")


def _topics(split: str) -> Iterator[tuple[str, str]]:
    """A side of the prose. Many topics are excerpts of others; such are never held out."""
    topics = list(Prose().texts())
    parts = {name: _paragraphs(text) for name, text in topics}
    count = Counter(part for own in parts.values() for part in own)
    for name, text in topics:
        alone = all(count[part] == 1 for part in parts[name])
        if (split_of(name, TOPICS_ONE_IN) if alone else "train") == split:
            yield name, text


def _paragraphs(text: str) -> set[str]:
    """The long paragraphs of a topic, however they are indented and broken into lines."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return {part for part in parts if len(part) >= LONG_PARAGRAPH}
