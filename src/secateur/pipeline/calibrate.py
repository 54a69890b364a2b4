"""The calibration stage: from a source to a folder with a calibration set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from secateur.calibration.filters.base import Filter, Verdict, apply_filters
from secateur.calibration.packing import Document, Packing
from secateur.calibration.sample import CalibrationSet, Sample, read_samples, write_samples
from secateur.calibration.sources.base import Source
from secateur.calibration.sources.resolve import SELF, resolve_source, resolve_text_source
from secateur.errors import CalibrationError, ModelError, UsageError
from secateur.generation.engine import Sampling
from secateur.generation.prompts import prefixes
from secateur.generation.self_generation import Generated, Goal, SelfGeneration
from secateur.generation.transformers_engine import TransformersEngine
from secateur.journal import Journal
from secateur.models.loading import load_model, load_tokenizer, pick_device, pick_dtype
from secateur.models.skeleton import read_config
from secateur.pipeline.components import ResolvedModel, filters_of, make_filters, resolve_model
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of, read_manifest

FORMAT = 1
SAMPLES, KEPT, DROPPED, JOURNAL = "samples.jsonl", "kept.jsonl", "dropped.jsonl", "generations.journal"


@dataclass(frozen=True)
class CalibrationStage:
    """The resolved stage: everything is checked, nothing is run. ``spec`` decides the output and its digest."""

    recipe: Recipe
    model: ResolvedModel
    tokenizer: PreTrainedTokenizerBase
    packing: Packing
    filters: Sequence[Filter]
    spec: dict[str, Any]

    @property
    def own_text(self) -> bool:
        return self.recipe.calibration.source == SELF

    def folder(self, store: Path) -> Path:
        source = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.recipe.calibration.source)[-40:].strip(
            "-"
        )
        return store / "calibration" / f"{source}-{digest_of(self.spec)[:DIGEST_SHOWN]}"

    def run(self, final: Path, reporter: Reporter) -> Path:
        """Make the set in ``final`` unless it is there; returns ``final``."""
        build(final, self.spec, lambda partial: self._make(partial, reporter), scratch=(JOURNAL,))
        return final

    def _make(self, folder: Path, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        if self.own_text:
            result, facts = self._own(folder, phases, reporter)
        else:
            result, facts = self._drawn(folder, phases)
        texts = self._texts(result.samples)
        write_samples(folder / SAMPLES, result.samples, texts)
        return {
            "kind": "calibration",
            "model": {"name": self.model.name, "digest": self.model.digest, "revision": self.model.revision},
            "source": self.recipe.calibration.source,
            "set_digest": result.digest,
            "samples": len(result.samples),
            "tokens": result.tokens,
            "account": result.account | facts,
            "seed": self.recipe.seed,
            "phases": phases.found,
            **environment(),
        }

    def _own(self, folder: Path, phases: Phases, reporter: Reporter) -> tuple[CalibrationSet, dict[str, Any]]:
        """Let the model write, filter, and pack what is kept."""
        spec = self.recipe.calibration
        with phases.phase("load"):
            device, dtype = pick_device(self.recipe.device), pick_dtype(self.recipe.dtype)
            engine = TransformersEngine(load_model(self.model.folder, device, dtype))
        generation = spec.generation
        source = resolve_text_source(generation.prefixes, generation.prefix_text_key)
        bos = _begin_token(self.tokenizer)
        specials = frozenset({*engine.end_tokens} | ({bos} if bos is not None else set()))
        writer = SelfGeneration(
            engine,
            prefixes(source, self.tokenizer, generation.prefix_tokens, generation.prefix_unit, bos, self.recipe.seed),
            self._generation_length(bos),
            _sampling(self.recipe),
            self.filters,
            generation.batch_size,
            self.recipe.seed,
            specials,
            self.packing.content if self.packing.rule == "document" else None,
        )
        goal = Goal(spec.samples * self.packing.content, generation.generations)
        with phases.phase("generate"):
            generated = writer.run(goal, Journal(folder / JOURNAL), reporter.advance("generations"))
        self._write_judged(folder, generated.samples, generated.verdicts)
        # Windows are drawn from all that was kept, however much that is.
        packing = replace(self.packing, pool=max(generation.generations or 0, spec.samples))
        result = packing.pack(generated.documents(specials), spec.samples, self.recipe.seed, SELF)
        return result, _generation_facts(generated)

    def _generation_length(self, bos: int | None) -> int:
        """Tokens of a generation: what a sample takes from it and its begin token, as far as the model's positions go."""
        length = self.packing.content + (bos is not None)
        return min(length, self.model.positions or length)

    def _drawn(self, folder: Path, phases: Phases) -> tuple[CalibrationSet, dict[str, Any]]:
        """Draw windows from a source; more of them when filters are to judge them."""
        spec, seed = self.recipe.calibration, self.recipe.seed
        source = _source(self.recipe)
        share = math.prod(judge.keeps for judge in self.filters)
        with phases.phase("draw"):
            asked = math.ceil(spec.samples / share)
            drawn = self.packing.pack(self._documents(source), asked, seed, source.name)
        if not self.filters:
            return drawn, {}
        with phases.phase("score"):
            device, dtype = pick_device(self.recipe.device), pick_dtype(self.recipe.dtype)
            engine = TransformersEngine(load_model(self.model.folder, device, dtype))
            scores = engine.score([sample.token_ids for sample in drawn.samples])
        scored = [sample.scored(score) for sample, score in zip(drawn.samples, scores, strict=True)]
        verdicts = apply_filters(self.filters, scored)
        self._write_judged(folder, scored, verdicts)
        kept = [sample for sample, verdict in zip(scored, verdicts, strict=True) if verdict.keep]
        facts = {"windows_drawn": asked, "windows_dropped": asked - len(kept)}
        if len(kept) < spec.samples:
            raise CalibrationError(
                f"{spec.samples} samples were asked of {source.name!r}, but the filters kept {len(kept)} of {asked} windows; "
                "loosen calibration.filters, or ask for fewer."
            )
        return CalibrationSet(tuple(kept[: spec.samples]), drawn.account), facts

    def _documents(self, source: Source) -> Iterable[Document]:
        return source.documents(self.tokenizer, self.recipe.seed)

    def _texts(self, samples: Sequence[Sample]) -> list[str]:
        return self.tokenizer.batch_decode([list(sample.token_ids) for sample in samples])

    def _write_judged(self, folder: Path, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
        """Kept and dropped samples, each with its verdict, in one file each."""
        texts = self._texts(samples)
        for name, keep in ((KEPT, True), (DROPPED, False)):
            chosen = [index for index, verdict in enumerate(verdicts) if verdict.keep is keep]
            extra = [{"value": verdicts[index].value, "reason": verdicts[index].reason} for index in chosen]
            write_samples(
                folder / name, [samples[index] for index in chosen], [texts[index] for index in chosen], extra
            )


def plan_calibration(recipe: Recipe, model: ResolvedModel | None = None) -> CalibrationStage:
    """Resolve and check the calibration stage of a recipe. Raises on anything that is wrong with what was asked."""
    model = model or resolve_model(recipe.model, recipe.revision)
    spec = recipe.calibration
    tokenizer = load_tokenizer(model.folder)
    length = spec.length or model.length
    if model.positions and length > model.positions:
        raise UsageError(
            f"Samples of {length} tokens were asked for, but {model.name} was made for {model.positions} positions; "
            f"set calibration.length to at most {model.positions}."
        )
    policy = spec.bos
    if policy == "auto":
        policy = "sample" if _begin_token(tokenizer) is not None else "none"
    if policy != "none" and tokenizer.bos_token_id is None:
        raise UsageError(
            f"The tokenizer of {model.name} has no begin token; set calibration.bos to none, not {policy}."
        )
    if existing_set(spec.source):
        raise UsageError(
            f"{spec.source} is a finished calibration set: give it to prune; there is nothing to generate."
        )
    bos, eos = (token if isinstance(token, int) else None for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    packing = Packing(length, spec.packing, policy, bos, eos, spec.pool)
    filters = make_filters(recipe)
    resolved = {
        "stage": "calibration",
        "format": FORMAT,
        "model": model.digest,
        "seed": recipe.seed,
        "source": spec.source,
        "samples": spec.samples,
        "length": length,
        "packing": spec.packing,
        "bos": policy,
        "filters": [named.model_dump() for named in filters_of(recipe)],
    }
    if spec.source == SELF:
        _sampling(recipe)
        source = resolve_text_source(spec.generation.prefixes, spec.generation.prefix_text_key)
        prompt = spec.generation.prefix_tokens + (_begin_token(tokenizer) is not None)
        if length <= prompt:
            raise UsageError(
                f"Samples of {length} tokens leave nothing to generate after prompts of {prompt}; raise calibration.length."
            )
        device = pick_device(recipe.device).partition(":")[0]
        resolved |= {"generation": spec.generation.model_dump(), "dtype": recipe.dtype, "device": device}
    else:
        source = _source(recipe)
        resolved |= {"pool": spec.pool, "text_key": spec.text_key, "split": spec.split, "revision": spec.revision}
        resolved |= {"dtype": recipe.dtype} if filters else {}
    resolved["source_fingerprint"] = source.fingerprint()
    return CalibrationStage(recipe, model, tokenizer, packing, filters, resolved)


def existing_set(source: str) -> Path | None:
    """The folder, when the source is a finished calibration set that Secateur made."""
    folder = Path(source)
    manifest = read_manifest(folder) if folder.is_dir() else None
    return folder if manifest and manifest.get("kind") == "calibration" else None


def check_set(folder: Path, model: ResolvedModel) -> None:
    """Raise ``ModelError`` when a finished set has tokens that the model does not."""
    largest = max(max(sample.token_ids) for sample in load_set(folder).samples)
    vocabulary = read_config(model.folder).get_text_config().vocab_size
    if largest >= vocabulary:
        made_for = (read_manifest(folder) or {})["model"]["name"]
        raise ModelError(
            f"The calibration set {folder} was made for {made_for} and holds the token {largest}, but {model.name} has only "
            f"{vocabulary} tokens; make a set for this model."
        )


def load_set(folder: Path) -> CalibrationSet:
    """The calibration set in a finished folder."""
    manifest = read_manifest(folder) or {}
    return CalibrationSet(tuple(read_samples(folder / SAMPLES)), manifest.get("account", {}))


def _source(recipe: Recipe) -> Source:
    spec = recipe.calibration
    return resolve_source(spec.source, spec.text_key, spec.split, spec.revision)


def _sampling(recipe: Recipe) -> Sampling:
    spec = recipe.calibration.generation
    return Sampling(spec.temperature, spec.top_k, spec.top_p, spec.repetition_penalty)


def _begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The begin token, if the tokenizer puts one in front of text by itself."""
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) and tokenizer("a")["input_ids"][:1] == [bos] else None


def _generation_facts(generated: Generated) -> dict[str, Any]:
    samples = generated.samples
    prompts = {sample.token_ids[: sample.prompt_tokens] for sample in samples}
    return {
        "generations": len(samples),
        "generations_dropped": sum(not verdict.keep for verdict in generated.verdicts),
        "generations_ended_by_model": sum(sample.finish == "eos" for sample in samples),
        "tokens_generated": sum(len(sample.token_ids) - sample.prompt_tokens for sample in samples),
        "distinct_prompts": len(prompts),
    }


def digest_of_set(folder: Path) -> str:
    """The digest of the ids of a finished set."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["set_digest"]
