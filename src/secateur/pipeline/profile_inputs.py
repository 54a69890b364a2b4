"""What a profile is of: the sets, the model they are measured with, the text they are compared with. All is checked here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from secateur.calibration.sample import Sample
from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.diagnosis import Reference
from secateur.errors import CalibrationError, ModelError, UsageError
from secateur.models.loading import load_tokenizer
from secateur.pipeline.calibrate import check_set, existing_set, load_set
from secateur.pipeline.calibration_stage import DROPPED, KEPT, SAMPLES
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.context import ModelContext
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.store import read_manifest

REFERENCE_CHARACTERS = 8_000_000
"""Of a larger reference, texts drawn by the seed until they have so many."""
SHOWN, CHARACTERS = 3, 400
"""Texts of a set that a profile shows, and how much of each."""


@dataclass(frozen=True)
class NamedSet:
    """A finished set: ``name`` is its folder's, told apart where two are the same. Its samples are without the stored
    log-probabilities, which another model or dtype may have given."""

    name: str
    folder: Path
    manifest: dict[str, Any]
    samples: tuple[Sample, ...]

    @property
    def digest(self) -> str:
        return self.manifest["set_digest"]

    @property
    def made_for(self) -> str:
        return self.manifest["model"]["name"]


@dataclass(frozen=True)
class NamedText:
    """Where a reference text comes from: a source, or a finished set."""

    name: str
    source: TextSource | Path
    seed: int

    def fingerprint(self) -> str:
        if isinstance(self.source, Path):
            return (read_manifest(self.source) or {})["set_digest"]
        return self.source.fingerprint()

    def open(self, context: ModelContext) -> Reference:
        """The texts: of a set its samples, of a source its documents in the order the seed decides, as many as there is
        room for. Raises ``CalibrationError`` when there are none."""
        if isinstance(self.source, Path):
            samples = load_set(self.source).samples
            return Reference(context.texts(samples), context.tokenizer, self.name, self.seed, samples)
        found, room = [], REFERENCE_CHARACTERS
        for _, text in self.source.shuffled(self.seed):
            found.append(text[:room])
            room -= len(text)
            if room <= 0:
                break
        return Reference(found, context.tokenizer, self.name, self.seed)


def find_sets(folders: Sequence[Path | str]) -> list[NamedSet]:
    """The finished sets in ``folders``. Raises ``UsageError`` for a folder that is none, ``CalibrationError`` for one that is
    empty."""
    if not folders:
        raise UsageError("Name at least one calibration set to profile: a folder that 'secateur generate' made.")
    found: list[NamedSet] = []
    for given in folders:
        folder = existing_set(str(given))
        if folder is None:
            raise UsageError(f"{given} is not a calibration set{_what_else(Path(given))}.")
        samples = tuple(replace(sample, mean_logprob=None) for sample in load_set(folder).samples)
        if not samples:
            raise CalibrationError(f"The calibration set {folder} has no samples, so there is nothing to measure.")
        name = folder.resolve().name
        taken = sum(one.name == name or one.name.startswith(f"{name} (") for one in found)
        found.append(NamedSet(f"{name} ({taken + 1})" if taken else name, folder, read_manifest(folder) or {}, samples))
    return found


def _what_else(folder: Path) -> str:
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest:
        return f", but a folder that Secateur made as {manifest.get('kind')!r}; name one that 'secateur generate' made"
    if folder.is_dir():
        return ": it has no manifest.json of one; 'secateur generate' makes sets, 'secateur import' takes in others'"
    return f": there is {'no such folder' if not folder.exists() else 'a file, not a folder, of that name'}"


def find_model(recipe: Recipe, sets: Sequence[NamedSet]) -> ResolvedModel:
    """The model that measures: the recipe's if it names one, else the one that the sets were made for.

    Raises ``UsageError`` when sets of different tokenizers are to be compared or were made for different models and none
    is named, ``ModelError`` when the model cannot be had or does not read the sets' tokens.
    """
    for other in sets[1:]:
        _refuse_unlike(sets[0], other)
    named = "model" in recipe.model_fields_set
    model = resolve_model(recipe.model, recipe.revision) if named else _made_for(sets)
    for one in sets:
        _check(one, model)
    return model


def _check(one: NamedSet, model: ResolvedModel) -> None:
    check_set(one.folder, model)
    if "tokenizer" not in one.manifest and one.manifest["model"]["digest"] != model.digest:
        _check_text(one, model)


def _refuse_unlike(one: NamedSet, other: NamedSet) -> None:
    tokenizers = [found.manifest.get("tokenizer") for found in (one, other)]
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        raise UsageError(
            f"The calibration sets {one.folder} (made for {one.made_for}) and {other.folder} (made for {other.made_for}) are of "
            "different tokenizers: the same ids are other text, so they cannot be compared. Profile each by itself."
        )


def _made_for(sets: Sequence[NamedSet]) -> ResolvedModel:
    first = sets[0]
    for other in sets[1:]:
        if other.manifest["model"]["digest"] != first.manifest["model"]["digest"]:
            raise UsageError(
                f"The calibration sets were made for different models, {first.folder} for {first.made_for} and {other.folder} "
                f"for {other.made_for}; say with --model which of them is to measure both."
            )
    try:
        return resolve_model(first.made_for, first.manifest["model"]["revision"])
    except ModelError as error:
        raise ModelError(
            f"The calibration set {first.folder} was made for {first.made_for}, which cannot be had: {error} Name the model "
            "with --model."
        ) from error


def _check_text(one: NamedSet, model: ResolvedModel) -> None:
    """For sets that do not say their tokenizer: the model's must read the first sample as its text says."""
    with (one.folder / SAMPLES).open(encoding="utf-8") as stream:
        entry = json.loads(stream.readline())
    read = load_tokenizer(model.folder).decode(entry["token_ids"])
    if read != entry["text"]:
        raise ModelError(
            f"The calibration set {one.folder} was made for {one.made_for}; {model.name} reads its first sample as "
            f"{str(read)[:40]!r}, not as {entry['text'][:40]!r}, so its tokenizer is another. Profile the set with its own model."
        )


def find_reference(name: str | None, recipe: Recipe, model: ResolvedModel) -> NamedText | None:
    """The text called ``name``: a finished set of the model's tokenizer, or a source of text."""
    if name is None:
        return None
    shown = Path(name).name if Path(name).expanduser().exists() else name
    folder = existing_set(name)
    if folder is not None:
        _check(find_sets([folder])[0], model)
        return NamedText(shown, folder, recipe.seed)
    spec = recipe.calibration
    return NamedText(shown, resolve_text_source(name, spec.text_key, spec.split, spec.revision), recipe.seed)


def shown_texts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The beginnings of a few kept and dropped samples, with what was measured of them and why they went."""
    found = {}
    for title, file in (("kept", KEPT), ("dropped", DROPPED)):
        if (folder / file).exists():
            found[title] = _beginnings(folder / file)
    return found or {"samples": _beginnings(folder / SAMPLES)}


def _beginnings(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        entries = [json.loads(line) for line in islice(stream, SHOWN)]
    return [
        {
            "text": entry["text"][:CHARACTERS],
            "cut": len(entry["text"]) > CHARACTERS,
            "value": entry.get("value"),
            "reason": entry.get("reason", ""),
        }
        for entry in entries
    ]
