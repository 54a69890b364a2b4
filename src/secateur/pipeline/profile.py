"""Profile calibration sets: which sets, by which model, beside which reference text; every number of them, as one record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.calibration.sample import Sample
from secateur.diagnosis import Finding, Options, Reference, Subject, families, measure
from secateur.diagnosis.overlap import overlap, overlap_values
from secateur.diagnosis.wording import similarity
from secateur.masks.pattern import parse_pattern, resolve_sparsity
from secateur.models.loading import load_tokenizer, pick_device, pick_dtype, settled_dtype
from secateur.models.skeleton import Skeleton
from secateur.pipeline.components import ResolvedModel
from secateur.pipeline.context import ModelContext
from secateur.pipeline.exchange import provenance_of
from secateur.pipeline.profile_inputs import (
    NamedSet,
    NamedText,
    find_model,
    find_reference,
    find_sets,
    shown_texts,
)
from secateur.pipeline.provenance import Phases, environment, machine_memory
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import build

FORMAT = 1
PROFILE = "profile.json"
PAIRED = "masks"
"""The family that is measured for all sets at once."""


@dataclass
class Bench:
    """A model to measure with and a text to compare with, each loaded when first needed and kept for the next set."""

    recipe: Recipe
    model: ResolvedModel
    text: NamedText | None
    options: Options

    @cached_property
    def context(self) -> ModelContext:
        return ModelContext(self.recipe, self.model.folder, load_tokenizer(self.model.folder))

    @cached_property
    def skeleton(self) -> Skeleton:
        device = pick_device(self.recipe.device)
        return Skeleton(self.model.folder, device, pick_dtype(self.recipe.dtype, device))

    @cached_property
    def reference(self) -> Reference | None:
        return None if self.text is None else self.text.open(self.context)

    def subject(self, samples: Sequence[Sample]) -> Subject:
        return Subject(samples, self.context, self.reference, self.skeleton, self.options)


@dataclass(frozen=True)
class ProfilePlan:
    """The sets, resolved and checked, and what they are measured with."""

    sets: Sequence[NamedSet]
    bench: Bench

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the profile."""
        recipe, text = self.bench.recipe, self.bench.text
        device = pick_device(recipe.device).partition(":")[0]
        return {
            "stage": "profile",
            "format": FORMAT,
            "model": self.bench.model.digest,
            "sets": [{"name": one.name, "digest": one.digest} for one in self.sets],
            "reference": text and {"name": text.name, "fingerprint": text.fingerprint()},
            "seed": recipe.seed,
            "dtype": settled_dtype(recipe.dtype, device),
            "device": device,
            "options": _options(self.bench.options),
        }

    def run(self, out: Path | None, reporter: Reporter) -> dict[str, Any]:
        """The profile: measured, or read back when ``out`` has it; written to ``out`` when that is given."""
        if out is None:
            return self._measure(reporter, Phases())
        build(out, self.spec, lambda partial: self._make(partial, reporter))
        return json.loads((out / PROFILE).read_text(encoding="utf-8"))

    def _make(self, folder: Path, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        found = self._measure(reporter, phases)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / PROFILE).write_text(text + "\n", encoding="utf-8")
        return {"kind": "profile", "model": found["model"], "phases": phases.found, **environment()}

    def _measure(self, reporter: Reporter, phases: Phases) -> dict[str, Any]:
        known = families()
        subjects = [self.bench.subject(one.samples) for one in self.sets]
        total, done = len(known) * len(subjects), 0
        found: list[dict[str, Finding]] = [{} for _ in subjects]
        between: dict[str, Any] = {}
        for name, family in known.items():
            with phases.phase(name):
                if name == PAIRED:
                    between, masks = _masks(subjects)
                    for one, finding in zip(found, masks, strict=True):
                        one[name] = finding
                else:
                    for one, subject in zip(found, subjects, strict=True):
                        one[name] = family.look(subject)
                        reporter.progress("measures", done := done + 1, total)
        reporter.progress("measures", total, total)
        with phases.phase("pairs"):
            wording = _wordings(subjects, self.bench.options.permutations)
        return {
            "model": {"name": _public(self.bench.model.name), "digest": self.bench.model.digest},
            "reference": self._reference(),
            "options": _options(self.bench.options),
            "families": {
                name: {
                    "title": family.title,
                    "quantities": {key: asdict(one) for key, one in family.quantities.items()},
                }
                for name, family in known.items()
            },
            "sets": [
                {
                    "name": one.name,
                    "made": provenance_of(one.folder),
                    "families": {name: asdict(finding) for name, finding in findings.items()},
                    "texts": shown_texts(one.folder),
                }
                for one, findings in zip(self.sets, found, strict=True)
            ],
            "between": {"jaccard": wording, "masks": between},
        }

    def _reference(self) -> dict[str, Any] | None:
        reference = self.bench.reference
        if reference is None:
            return None
        facts = reference.facts
        return {
            "name": reference.name,
            "texts": len(facts.texts),
            "characters": sum(map(len, facts.texts)),
            "tokens": sum(map(len, facts.ids)),
            "shingles": len(facts.shingles),
        }


def plan_profile(
    recipe: Recipe,
    sets: Sequence[Path | str],
    reference: str | None = None,
    permutations: int | None = None,
    min_k: float | None = None,
) -> ProfilePlan:
    """Resolve and check a profile. The recipe says where the model runs, and the pattern and sparsity of the masks; its
    ``model`` counts when it was set, else that of the sets does. Raises on anything that cannot be measured or compared.
    """
    pattern = parse_pattern(recipe.pruning.pattern)
    asked = {"permutations": permutations, "min_k": min_k}
    gib = recipe.pruning.activation_gib
    options = Options(
        pattern=pattern,
        sparsity=resolve_sparsity(pattern, recipe.pruning.sparsity),
        batch=recipe.pruning.batch_size,
        activation_bytes=int(gib * 2**30) if gib else machine_memory() // 4,
        **{name: value for name, value in asked.items() if value is not None},
    )
    found = find_sets(sets)
    model = find_model(recipe, found)
    return ProfilePlan(found, Bench(recipe, model, find_reference(reference, recipe, model), options))


def diagnose(
    folder: Path | str, model: str, reference: str | None = None, only: Sequence[str] | None = None
) -> dict[str, float]:
    """Every number of the set in ``folder`` under ``model``, as one flat dict (``diagnosis.measure``); what was loaded for
    one set is kept for the next."""
    found = find_sets([folder])
    bench = _bench(model, reference)
    find_model(bench.recipe, found)
    return measure(found[0].samples, bench.context, bench.reference, bench.skeleton, bench.options, only)


@lru_cache(maxsize=1)
def _bench(model: str, reference: str | None) -> Bench:
    recipe = Recipe(model=model)
    resolved = find_model(recipe, [])
    return Bench(recipe, resolved, find_reference(reference, recipe, resolved), Options())


def _masks(subjects: Sequence[Subject]) -> tuple[dict[str, Any], list[Finding]]:
    """The overlap of masks between all sets, and what it says of each."""
    first = subjects[0]
    observed = [subject.observed for subject in subjects]
    references = [subject.observed_reference for subject in subjects]
    everything = [one for one in (*observed, *references) if one is not None]
    assert first.skeleton is not None
    unique = list({id(one): one for one in everything}.values())
    found = overlap(first.skeleton, unique, first.options.pattern, first.options.sparsity)
    place = {id(one): number for number, one in enumerate(unique)}
    at = [place[id(one)] for one in observed]
    findings = [
        Finding(overlap_values(found, mine, None if theirs is None else place[id(theirs)]))
        for mine, theirs in zip(at, references, strict=True)
    ]
    tables = {"halves": found.halves, "whole": found.whole, "agree": found.agree}
    return {name: _rows(table[at][:, at]) for name, table in tables.items()} | {"chance": found.chance}, findings


def _rows(table: Tensor) -> list[list[float | None]]:
    return [[None if value != value else round(value, 6) for value in row] for row in table.tolist()]


def _wordings(subjects: Sequence[Subject], permutations: int) -> list[list[float]]:
    """The 3-gram Jaccard index of every two sets: exact where that is known, else by MinHash."""
    found = [[1.0] * len(subjects) for _ in subjects]
    for one in range(len(subjects)):
        for other in range(one):
            values = similarity(subjects[one].facts, subjects[other].facts, permutations)
            value = round(values.get("jaccard", values["jaccard_minhash"]), 6)
            found[one][other] = found[other][one] = value
    return found


def _options(options: Options) -> dict[str, Any]:
    """The options that decide a number."""
    return {
        "permutations": options.permutations,
        "min_k": options.min_k,
        "pattern": str(options.pattern),
        "sparsity": options.sparsity,
    }


def _public(name: str) -> str:
    """A Hub id, or the last part of a folder's path: where it lies is nobody else's business."""
    return Path(name).name if Path(name).expanduser().exists() else name
