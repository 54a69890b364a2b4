"""The calibration stage and how its samples come to be: written by the model or drawn from sources, judged, chosen."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from secateur.calibration.document import Document
from secateur.calibration.filters.base import Filter, Verdict, apply_filters, tally
from secateur.calibration.packing import Packing
from secateur.calibration.sample import CalibrationSet, Sample, write_samples
from secateur.calibration.selection.base import Selection
from secateur.calibration.sources.base import Source, Texts
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.errors import CalibrationError
from secateur.generation.engine import Sampling
from secateur.generation.self_generation import Generated, Goal, SelfGeneration
from secateur.generation.styles.base import Material, Style
from secateur.journal import Journal
from secateur.models.begin import begin_token
from secateur.pipeline.components import ResolvedModel, make_style
from secateur.pipeline.context import ModelContext
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import Part, Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.set_facts import generation_facts, vocabulary_facts, warnings_of
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of

SAMPLES = "samples.jsonl"
KEPT, DROPPED, UNCHOSEN, JOURNAL = "kept.jsonl", "dropped.jsonl", "unchosen.jsonl", "generations{}.journal"
MOST_DRAWN = 8
"""At most so many times the windows first drawn, where filters drop more than could be known."""
POOL_OF_OWN_TEXT = 10**9  # windows are drawn from all that was kept, however much that is


@dataclass(frozen=True)
class SourceShare:
    """One source and how many samples it gives. ``source`` ``None``: the model writes them."""

    name: str
    source: Source | None
    samples: int


@dataclass(frozen=True)
class CalibrationStage:
    """The resolved stage: everything is checked, nothing is run. ``spec`` decides the output and its digest."""

    recipe: Recipe
    model: ResolvedModel
    tokenizer: PreTrainedTokenizerBase
    packing: Packing
    filters: Sequence[Filter]
    selection: Selection
    style: Style
    parts: Sequence[SourceShare]
    spec: dict[str, Any]

    @property
    def own_text(self) -> bool:
        """Whether the model writes any of it."""
        return any(part.source is None for part in self.parts)

    @property
    def sampling(self) -> Sampling:
        return sampling_of(self.recipe)

    @property
    def material(self) -> Material:
        return material_of(self.recipe, self.tokenizer, self.model.positions)

    @property
    def generation_length(self) -> int:
        """Tokens of a generation: what a sample takes from it and its begin token, as far as the model's positions go."""
        length = self.packing.content + (begin_token(self.tokenizer) is not None)
        return min(length, self.model.positions or length)

    def folder(self, store: Path) -> Path:
        source = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.recipe.calibration.source)[-40:].strip(
            "-"
        )
        return store / "calibration" / f"{source}-{digest_of(self.spec)[:DIGEST_SHOWN]}"

    def run(self, final: Path, reporter: Reporter) -> Path:
        """Make the set in ``final`` unless it is there; returns ``final``."""
        journals = [JOURNAL.format(number or "") for number, _ in enumerate(self.parts)]
        build(final, self.spec, lambda partial: self._make(partial, reporter), scratch=journals)
        return final

    def decode(self, samples: Sequence[Sample]) -> list[str]:
        """The samples as text, special tokens shown."""
        return self.tokenizer.batch_decode([list(sample.token_ids) for sample in samples])

    def _make(self, folder: Path, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        result = CalibrationRun(self, folder, phases, reporter).make()
        write_samples(folder / SAMPLES, result.samples, self.decode(result.samples))
        accounts: Any = result.account if len(self.parts) > 1 else {self.parts[0].name: result.account}
        prompted = self.style.uses_sources and self.recipe.calibration.generation.prefix_tokens > 0
        warnings = warnings_of(accounts, prompted)
        for warning in warnings:
            reporter.note(warning)
        return {
            "kind": "calibration",
            "model": {"name": self.model.name, "digest": self.model.digest, "revision": self.model.revision},
            **vocabulary_facts(self.model.folder, self.tokenizer),
            "source": self.recipe.calibration.source,
            "set_digest": result.digest,
            "samples": len(result.samples),
            "tokens": result.tokens,
            "account": result.account,
            "warnings": warnings,
            "seed": self.recipe.seed,
            "phases": phases.found,
            **environment(),
        }


@dataclass
class Judged:
    """What is written beside the set: samples with their values and, if dropped, the reason."""

    kept: list[tuple[Sample, Verdict]] = field(default_factory=list)
    dropped: list[tuple[Sample, Verdict]] = field(default_factory=list)
    unchosen: list[tuple[Sample, Verdict]] = field(default_factory=list)


class CalibrationRun:
    """Fills one folder."""

    def __init__(self, stage: CalibrationStage, folder: Path, phases: Phases, reporter: Reporter) -> None:
        self.stage, self.folder, self.phases, self.reporter = stage, folder, phases, reporter
        self.context = ModelContext(stage.recipe, stage.model.folder, stage.tokenizer)
        self.judged = Judged()

    def make(self) -> CalibrationSet:
        """The set of all parts, in an order drawn by the seed where there are several."""
        parts = self.stage.parts
        found = [self._part(number, part) for number, part in enumerate(parts)]
        samples = [sample for one in found for sample in one.samples]
        account: dict[str, Any] = found[0].account
        if len(parts) > 1:
            random.Random(self.stage.recipe.seed).shuffle(samples)
            account = {part.name: one.account for part, one in zip(parts, found, strict=True)}
        self._write()
        return CalibrationSet(tuple(self.context.scored(samples)), account)

    def _part(self, number: int, part: SourceShare) -> CalibrationSet:
        pool = self.stage.selection.pool_of(part.samples)
        found = self._own(number, pool) if part.source is None else self._drawn(part.source, pool)
        with self.phases.phase("select"):
            choice = self.stage.selection.choose(found.samples, part.samples, self.context)
        if choice.values:
            chosen = set(choice.indices)
            rest = [index for index in range(len(found.samples)) if index not in chosen]
            self.judged.unchosen += [(found.samples[i], Verdict(False, choice.values[i], "not chosen")) for i in rest]
        return replace(found, samples=tuple(found.samples[index] for index in choice.indices))

    def _own(self, number: int, samples: int) -> CalibrationSet:
        """Let the model write, filter, and pack what is kept."""
        stage, spec = self.stage, self.stage.recipe.calibration
        generation, packing = spec.generation, stage.packing.of("paper-joined")
        with self.phases.phase("load"):
            engine = self.context.engine
        material = stage.material
        writer = SelfGeneration(
            engine,
            stage.style,
            stage.style.prompts(material),
            stage.generation_length,
            stage.sampling,
            stage.filters,
            generation.batch_size,
            stage.recipe.seed,
            material,
            self.context,
        )
        window = packing.content if packing.rule in ("document", "whole") else None
        goal = Goal(samples * packing.content, generation.generations, window, packing.rule == "whole")
        journal = Journal(self.folder / JOURNAL.format(number or ""))
        with self.phases.phase("generate"):
            generated = writer.run(goal, journal, self.reporter.advance("generations"))
        self._note(generated.samples, generated.verdicts)
        documents: Iterable[Document] = generated.documents(material.bos, engine.end_tokens)
        if packing.rule == "paper-joined":
            documents = self._written(generated).paper_joined(stage.tokenizer, stage.recipe.seed)
        try:
            packed = replace(packing, pool=POOL_OF_OWN_TEXT).pack(documents, samples, stage.recipe.seed, "self")
        except CalibrationError as error:
            if dropped := tally(generated.verdicts):
                raise CalibrationError(f"{error} The filters dropped ({dropped}).") from error
            raise
        return replace(packed, account=packed.account | generation_facts(generated))

    def _written(self, generated: Generated) -> Texts:
        """What was kept, as the paper's program stores it: text, to be tokenised again."""
        kept = [sample for sample, verdict in zip(generated.samples, generated.verdicts, strict=True) if verdict.keep]
        return Texts("self", [(f"self#{number}", text) for number, text in enumerate(self.context.texts(kept))])

    def _drawn(self, source: Source, samples: int) -> CalibrationSet:
        """Draw windows from a source; more of them when filters are to judge them, and again more if too few are kept."""
        stage, seed = self.stage, self.stage.recipe.seed
        filters = stage.filters if stage.recipe.calibration.filters is not None else []
        share = math.prod(judge.keeps for judge in filters)

        def draw(asked: int) -> CalibrationSet:
            packing = stage.packing.of(source.paper_rule)
            documents = source.for_rule(packing.rule, stage.tokenizer, seed, packing.pool_tokens(asked))
            return packing.pack(documents, asked, seed, source.name)

        asked = math.ceil(samples / share)
        with self.phases.phase("draw"):
            drawn = draw(asked)
        if not filters:
            return drawn
        with self.phases.phase("filter"):
            verdicts = apply_filters(filters, drawn.samples, self.context)
            most, no_more = MOST_DRAWN * asked, ""
            while 0 < (count := sum(verdict.keep for verdict in verdicts)) < samples and asked < most:
                try:
                    drawn = draw(min(most, asked * samples // count + 1))
                except CalibrationError as error:
                    no_more = f" More windows could not be drawn: {error}"
                    break
                asked = len(drawn.samples)
                verdicts = apply_filters(filters, drawn.samples, self.context)
        self._note(drawn.samples, verdicts)
        kept = [sample for sample, verdict in zip(drawn.samples, verdicts, strict=True) if verdict.keep]
        if len(kept) < samples:
            raise CalibrationError(
                f"{samples} samples were asked of {source.name!r}, but the filters kept {len(kept)} of {asked} windows "
                f"({tally(verdicts)}); loosen calibration.filters, or ask for fewer.{no_more}"
            )
        facts = {"windows_drawn": asked, "windows_dropped": asked - len(kept)}
        return CalibrationSet(tuple(kept[:samples]), drawn.account | facts)

    def _note(self, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
        for sample, verdict in zip(self.context.scored(samples), verdicts, strict=True):
            (self.judged.kept if verdict.keep else self.judged.dropped).append((sample, verdict))

    def _write(self) -> None:
        """Kept, dropped and unchosen samples, each with its verdict, in one file each."""
        judged = self.judged
        files = [(KEPT, judged.kept), (DROPPED, judged.dropped)] if judged.kept or judged.dropped else []
        files += [(UNCHOSEN, judged.unchosen)] if judged.unchosen else []
        for name, entries in files:
            samples = [sample for sample, _ in entries]
            extra = [{"value": verdict.value, "reason": verdict.reason, "filter": verdict.by} for _, verdict in entries]
            write_samples(self.folder / name, samples, self.stage.decode(samples), extra)


def shares(weights: Sequence[float], samples: int) -> list[int]:
    """``samples`` by weight: whole numbers that sum to it, the largest remainders rounded up, earlier ones first."""
    exact = [weight / sum(weights) * samples for weight in weights]
    found = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (found[index] - exact[index], index))
    for index in by_remainder[: samples - sum(found)]:
        found[index] += 1
    return found


def material_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, positions: int | None) -> Material:
    """What the recipe's style makes prompts of; no sources where it uses none. ``positions``: the model's."""
    spec = recipe.calibration.generation
    named = (
        [Part(source=spec.prefixes, text_key=spec.prefix_text_key)] if isinstance(spec.prefixes, str) else spec.prefixes
    )
    used = named if make_style(recipe).uses_sources else []
    sources = [(resolve_text_source(part.source, part.text_key), part.weight) for part in used]
    begin = begin_token(tokenizer)
    return Material(tokenizer, begin, sources, spec.prefix_tokens, spec.prefix_unit, recipe.seed, positions)


def sampling_of(recipe: Recipe) -> Sampling:
    spec = recipe.calibration.generation
    return Sampling(
        spec.temperature,
        spec.top_k,
        spec.top_p,
        spec.min_p,
        spec.repetition_penalty,
        options=spec.options,
    )
