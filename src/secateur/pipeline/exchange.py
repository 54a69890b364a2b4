"""Sharing calibration sets: a finished set to a format that other tools read, and other tools' data to a finished set."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.calibration.exchange import FORMATS
from secateur.calibration.exchange.base import Format, Row
from secateur.calibration.exchange.places import formats, named_format, rows_at
from secateur.calibration.exchange.rows import RowReader, rows_of
from secateur.calibration.sample import CalibrationSet, Sample, write_samples
from secateur.errors import ModelError, StoreError, UsageError
from secateur.models.configuration import vocabulary_size
from secateur.models.loading import load_tokenizer
from secateur.models.locate import locate_model
from secateur.pipeline.calibrate import existing_set, load_set
from secateur.pipeline.calibration_stage import SAMPLES
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.provenance import environment
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.set_facts import vocabulary_facts
from secateur.pipeline.set_provenance import PROVENANCE, provenance_of, read_provenance
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of, read_manifest

FORMAT = 1
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What an export wrote. ``padding``: tokens added so that all rows are of one length."""

    place: Path
    format: str
    samples: int
    tokens: int
    padding: int


@dataclass(frozen=True)
class ExportPlan:
    """A finished set, a format, a free place. A ``place`` with the format's suffix is one file; any other, a folder."""

    folder: Path
    place: Path
    name: str
    format: Format
    pad: bool = False
    model: str | None = None

    def run(self, card: Callable[[Path, str], str]) -> Exported:
        """Write it under a temporary name, then give it its own. ``card``: from the set and its data files to README.md."""
        found = load_set(self.folder)
        rows = rows_of(found.samples, self._texts(found.samples), self._padding_token() if self.pad else None)
        with _made_beside(self.place) as made:
            if self.alone:
                self.format.write(rows, made)
            else:
                made.mkdir()
                self.format.write(rows, made / self.format.data if self.format.suffixes else made)
                (made / CARD).write_text(card(self.folder, self.format.data), encoding="utf-8")
                facts = json.dumps(provenance_of(self.folder), indent=1, ensure_ascii=False)
                (made / PROVENANCE).write_text(facts + "\n", encoding="utf-8")
        stored = sum(len(row["input_ids"]) for row in rows)
        return Exported(self.place, self.name, len(found.samples), found.tokens, stored - found.tokens)

    @property
    def alone(self) -> bool:
        """Whether a file alone is asked for, without card and provenance."""
        return self.place.name.endswith(self.format.suffixes)

    def _texts(self, samples: Iterable[Sample]) -> list[str]:
        """As the set shows them; for formats of plain text, without special tokens."""
        if self.format.plain:
            ids = [list(sample.token_ids) for sample in samples]
            return self._tokenizer().batch_decode(ids, skip_special_tokens=True)
        with (self.folder / SAMPLES).open(encoding="utf-8") as stream:
            return [json.loads(line).get("text", "") for line in stream]

    def _padding_token(self) -> int:
        tokenizer = self._tokenizer()
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise UsageError("The tokenizer has neither a padding nor an end token, so there is nothing to pad with.")

    def _tokenizer(self) -> Any:
        model = (read_manifest(self.folder) or {})["model"]
        try:
            folder = locate_model(self.model) if self.model else locate_model(model["name"], model.get("revision"))
            return load_tokenizer(folder)
        except ModelError as error:
            what = "plain text is decoded" if self.format.plain else "padding takes its token"
            raise ModelError(
                f"For this, {what} with the set's own tokenizer; name its model with --model. {error}"
            ) from error


def plan_export(
    folder: Path, place: Path, format: str | None = None, pad: bool = False, model: str | None = None
) -> ExportPlan:
    """Check an export. ``format`` ``None``: what the place's name says, else ``hf``. Raises on whatever is wrong."""
    if existing_set(str(folder)) is None:
        raise UsageError(f"{folder} is not a finished calibration set{_what_instead(folder)}.")
    meant = named_format(place)
    name = format or meant or "hf"
    found: Format = FORMATS.load(name)()
    if not found.writes:
        writable = ", ".join(other for other, kind in formats().items() if kind.writes)
        raise UsageError(f"The format {name!r} is only read; write {writable}.")
    if meant not in (None, name):
        raise UsageError(f"{place} is named as {meant}, but the format {name} was asked for; change one of them.")
    if pad and found.plain:
        raise UsageError(f"The format {name!r} holds no token ids, so there is nothing to pad.")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UsageError(f"{place} exists already; nothing is overwritten. Give another --out, or delete it.")
    return ExportPlan(folder, place, name, found, pad, model)


@dataclass(frozen=True)
class ImportPlan:
    """Samples that were read and checked, for ``model``. ``origin``: what they came from; ``made_by``: what came with it."""

    model: ResolvedModel
    origin: str
    found: CalibrationSet
    made_by: dict[str, Any] | None

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the set: its samples with all that is known of them, and the tokenizer that shows their text."""
        samples = [sample.to_json() for sample in self.found.samples]
        return {
            "stage": "import",
            "format": FORMAT,
            "model": self.model.digest,
            "source": self.origin,
            "samples": len(samples),
            "length": max(len(sample["token_ids"]) for sample in samples),
            "content": digest_of({"samples": samples}),
            "made_by": digest_of(self.made_by) if self.made_by else None,
        }

    def folder(self, store: Path) -> Path:
        return store / "calibration" / f"imported-{digest_of(self.spec)[:DIGEST_SHOWN]}"

    def run(self, final: Path) -> Path:
        build(final, self.spec, self._make)
        return final

    def _make(self, folder: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(self.model.folder)
        texts = tokenizer.batch_decode([list(sample.token_ids) for sample in self.found.samples])
        write_samples(folder / SAMPLES, self.found.samples, texts)
        return {
            "kind": "calibration",
            "model": {"name": self.model.name, "digest": self.model.digest, "revision": self.model.revision},
            "source": self.origin,
            "set_digest": self.found.digest,
            "samples": len(self.found.samples),
            "tokens": self.found.tokens,
            "account": self.found.account,
            "seed": (self.made_by or {}).get("seed"),
            "imported": {"from": self.origin, "made_by": self.made_by},
            **vocabulary_facts(self.model.folder, tokenizer),
            **environment(),
        }


def plan_import(data: Path | str | Iterable[Row], model: str, reporter: Reporter | None = None) -> ImportPlan:
    """Read and check ``data``: a file, a folder, or rows (a data set, a list of dicts with ``input_ids``).

    Raises ``CalibrationError`` for what cannot become samples of the model, ``UsageError`` for what is no such data.
    """
    resolved = resolve_model(model)
    vocabulary = vocabulary_size(resolved.folder)
    reader = RowReader(resolved.name, vocabulary, resolved.positions)
    place = None
    if isinstance(data, str | Path):
        place = Path(data).expanduser()
        _refuse_finished(place)
        name, rows = place.resolve().name, rows_at(place)
    else:
        name, rows = "rows in memory", ((f"Row {number:,}", row) for number, row in enumerate(data, 1))
    samples = reader.read(rows, "The list of rows" if place is None else str(place))
    found = CalibrationSet(tuple(samples), {"rows_read": reader.rows, "padding_removed": reader.padding})
    made_by, objection = (None, "") if place is None else read_provenance(place, found.digest)
    if made_by and made_by["model"].get("digest") != resolved.digest:
        objection = (
            f"The data was made for {made_by['model']['name']}, another model than {resolved.name}; its ids mean the same only "
            "if both have the same tokenizer."
        )
    if objection:
        (reporter or Reporter()).note(objection)
    return ImportPlan(resolved, name, found, made_by)


def _refuse_finished(place: Path) -> None:
    if place.is_dir() and existing_set(str(place)):
        raise UsageError(f"{place} is a calibration set already: give it to prune, as --calibration {place}.")


def _what_instead(folder: Path) -> str:
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest:
        return f": Secateur made it, but as {manifest.get('kind')!r}"
    return " that Secateur made; 'secateur generate' makes one" if folder.exists() else ": there is no such folder"


@contextmanager
def _made_beside(place: Path) -> Iterator[Path]:
    """A path in a temporary folder beside ``place``; what is there at the end is renamed to ``place``, or else is gone."""
    place = place.absolute()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            made = temporary / place.name
            yield made
            if place.exists() and not place.is_dir():
                raise UsageError(f"{place} was made by another process meanwhile; nothing is overwritten.")
            made.replace(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(
            f"Writing {place} failed: {reason}. Nothing was left there; mend that and try again."
        ) from error
