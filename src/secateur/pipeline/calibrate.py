"""The calibration stage: from a source to a folder with a calibration set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from secateur.calibration.packing import PAPER_RULES, BosPolicy, Packing
from secateur.calibration.reads import Reads
from secateur.calibration.sample import CalibrationSet, read_samples
from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.resolve import MIXTURE, SELF, resolve_source, resolve_text_source
from secateur.errors import ModelError, RecipeError, UsageError
from secateur.generation.styles.base import Material, Style
from secateur.models.begin import begin_token
from secateur.models.loading import check_loadable, load_tokenizer, pick_device, settled_dtype
from secateur.pipeline.calibration_stage import (
    SAMPLES,
    CalibrationStage,
    SourceShare,
    material_of,
    sampling_of,
    shares,
)
from secateur.pipeline.components import (
    ResolvedModel,
    filters_of,
    make_engine,
    make_filters,
    make_selection,
    make_style,
    resolve_model,
)
from secateur.pipeline.recipe import CalibrationSpec, Part, Recipe
from secateur.pipeline.set_facts import vocabulary_facts
from secateur.pipeline.store import read_manifest

FORMAT = 3


def plan_calibration(recipe: Recipe, model: ResolvedModel | None = None) -> CalibrationStage:
    """Resolve and check the calibration stage of a recipe. Raises on anything that is wrong with what was asked."""
    model = model or resolve_model(recipe.model, recipe.revision)
    spec = recipe.calibration
    tokenizer = load_tokenizer(model.folder)
    if existing_set(spec.source):
        raise UsageError(
            f"{spec.source} is a finished calibration set: give it to prune; there is nothing to generate."
        )
    packing = _packing(recipe, model, tokenizer)
    filters, selection, style = make_filters(recipe), make_selection(recipe), make_style(recipe)
    wanted = _parts(spec)
    counts = shares([part.weight for part in wanted], spec.samples)
    if 0 in counts:
        raise UsageError(
            f"{spec.samples} samples are too few for the weights of calibration.mixture: "
            f"{wanted[counts.index(0)].source!r} would give none. Ask for more samples, or leave it out."
        )
    parts = [
        SourceShare(part.source, None if part.source == SELF else _source(spec, part), count)
        for part, count in zip(wanted, counts, strict=True)
    ]
    resolved = {
        "stage": "calibration",
        "format": FORMAT,
        "model": model.digest,
        "seed": recipe.seed,
        "source": spec.source,
        "samples": spec.samples,
        "length": packing.length,
        "packing": spec.packing,
        "bos": "auto" if spec.packing in PAPER_RULES else packing.bos_policy,
        "filters": [named.model_dump() for named in filters_of(recipe)],
        "selection": spec.selection.model_dump(),
        "source_fingerprint": [part.source.fingerprint() if part.source else None for part in parts],
    }
    if read := _read_besides(recipe, [*(judge.reads for judge in filters), selection.reads]):
        resolved["reads"] = read
    if spec.source == MIXTURE:
        resolved["mixture"] = [part.model_dump() for part in spec.mixture]
        if spec.filters is None and resolved["filters"]:
            resolved |= {"filters": None, "own_filters": resolved["filters"]}
    device = pick_device(recipe.device).partition(":")[0]
    dtype = settled_dtype(recipe.dtype, device)
    own, drawn = (any((part.source is None) == written for part in parts) for written in (True, False))
    lacking = packing.bos_policy != "sample" and (spec.selection.name != "random" or (drawn and bool(spec.filters)))
    if own:
        check_loadable(model.folder)
        material = material_of(recipe, tokenizer, model.positions)
        lacking |= not style.begins(material)
        resolved |= {"dtype": dtype, "device": device} | _writing(recipe, style, material, packing)
    if drawn:
        resolved |= {"pool": spec.pool, "text_key": spec.text_key, "split": spec.split, "revision": spec.revision}
        resolved |= {"dtype": dtype, "device": device} if filters or spec.selection.name != "random" else {}
        if spec.packing == "concat" and any(isinstance(part.source, TextSource) for part in parts):
            resolved["texts"] = "evenly, long ones too"  # otherwise drawn than in sets from before that was so
    if lacking and begin_token(tokenizer) is not None:  # what is scored may lack it; sets from before were scored so
        resolved["scored"] = "after the begin token"
    return CalibrationStage(recipe, model, tokenizer, packing, filters, selection, style, parts, resolved)


def _writing(recipe: Recipe, style: Style, material: Material, packing: Packing) -> dict[str, Any]:
    """What decides what the model writes. Raises ``UsageError`` for what cannot be written."""
    spec = recipe.calibration
    if spec.packing == "paper-document":
        raise UsageError(
            "calibration.packing=paper-document needs texts longer than a sample, and generated ones are as long as one; "
            "use paper-joined (which paper means for them), concat or document."
        )
    sampling_of(recipe)
    style.check(material, packing.length)
    # Before, the longest prompt of a batch cut the answers to all of it.
    answers = {"answers": "as long as each prompt leaves room"} if style.uneven else {}
    return answers | {
        "generation": spec.generation.model_dump() | {"engine": _deciding_engine(recipe)},
        "prefix_fingerprint": [source.fingerprint() for source, _ in material.sources],
    }


def _deciding_engine(recipe: Recipe) -> dict[str, Any]:
    """The checked engine without what only says where it runs: a set is the same wherever it was written."""
    return type(make_engine(recipe)).deciding(recipe.calibration.generation.engine.model_dump())


def _packing(recipe: Recipe, model: ResolvedModel, tokenizer: PreTrainedTokenizerBase) -> Packing:
    spec = recipe.calibration
    length = spec.length or model.length
    if model.positions and length > model.positions:
        raise UsageError(
            f"Samples of {length} tokens were asked for, but {model.name} was made for {model.positions} positions; "
            f"set calibration.length to at most {model.positions}."
        )
    begin = begin_token(tokenizer)
    policy: BosPolicy | Literal["auto"] = spec.bos
    if spec.packing in PAPER_RULES:
        if policy != "auto":
            raise UsageError(
                f"calibration.packing={spec.packing} has special tokens where the tokenizer puts them; leave calibration.bos "
                f"at auto, not {policy}."
            )
        policy = "tokenizer"
    if policy == "auto":
        policy = "sample" if begin is not None else "none"
    if policy in ("sample", "document") and begin is None and tokenizer.bos_token_id is None:
        raise UsageError(
            f"The tokenizer of {model.name} has no begin token; set calibration.bos to none, not {policy}."
        )
    named, eos = (
        token if isinstance(token, int) else None for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    )
    return Packing(length, spec.packing, policy, named if begin is None else begin, eos, spec.pool)


def _parts(spec: CalibrationSpec) -> list[Part]:
    """The sources and their weights: those of the mixture, or the one there is."""
    if (spec.source == MIXTURE) != bool(spec.mixture):
        raise RecipeError(
            "calibration.source mixture and the list calibration.mixture go together; found "
            f"source {spec.source!r} and {len(spec.mixture)} parts."
        )
    if spec.source != MIXTURE:
        return [Part(source=spec.source, text_key=spec.text_key)]
    names = [part.source for part in spec.mixture]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or MIXTURE in names:
        raise RecipeError(
            f"The parts of a mixture are different sources; found {', '.join(twice) or 'a mixture'} again."
        )
    return spec.mixture


def _read_besides(recipe: Recipe, reads: Sequence[Reads]) -> dict[str, str]:
    """What filters and selection read, by name, each with what identifies its content."""
    spec = recipe.calibration
    found = {name: resolve_text_source(name, spec.text_key).fingerprint() for one in reads for name in one.sources}
    found |= {name: resolve_model(name).digest for one in reads for name in one.models}
    for folder in (folder for one in reads for folder in one.sets):
        if existing_set(folder) is None:
            raise UsageError(
                f"{folder} is no finished calibration set, so no samples can be chosen to be like its own."
            )
        found[folder] = digest_of_set(Path(folder))
    return found


def existing_set(source: str) -> Path | None:
    """The folder, when the source is a finished calibration set that Secateur made."""
    folder = Path(source)
    manifest = read_manifest(folder) if folder.is_dir() else None
    return folder if manifest and manifest.get("kind") == "calibration" else None


def check_set(folder: Path, model: ResolvedModel) -> None:
    """Raise ``ModelError`` when a finished set has tokens that the model does not, or that it reads as others."""
    manifest = read_manifest(folder) or {}
    largest = max((max(sample.token_ids, default=0) for sample in load_set(folder).samples), default=0)
    facts = vocabulary_facts(model.folder, load_tokenizer(model.folder))
    known = f" (a vocabulary of {manifest['vocabulary']:,})" if "vocabulary" in manifest else ""
    origin = f"The calibration set {folder} was made for {manifest['model']['name']}{known}"
    if largest >= facts["vocabulary"]:
        raise ModelError(
            f"{origin} and holds the token {largest}, but {model.name} has only {facts['vocabulary']} tokens; make a set for "
            "this model."
        )
    if manifest.get("tokenizer", facts["tokenizer"]) != facts["tokenizer"]:
        raise ModelError(
            f"{origin}, whose tokenizer is another than that of {model.name} (a vocabulary of {facts['vocabulary']:,}): the "
            "same ids are other text there. Make a set for this model."
        )


def load_set(folder: Path) -> CalibrationSet:
    """The calibration set in a finished folder."""
    manifest = read_manifest(folder) or {}
    return CalibrationSet(tuple(read_samples(folder / SAMPLES)), manifest.get("account", {}))


def digest_of_set(folder: Path) -> str:
    """The digest of the ids of a finished set."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["set_digest"]


def _source(spec: CalibrationSpec, part: Part) -> Any:
    return resolve_source(part.source, part.text_key, spec.split, spec.revision)
