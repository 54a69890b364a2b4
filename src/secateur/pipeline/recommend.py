"""Rank candidate calibration sources for a model by the diagnoses that proved predictive of the pruned model's quality."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from secateur.calibration.sample import Sample
from secateur.calibration.sources.resolve import SELF
from secateur.diagnosis import Options, families, measure
from secateur.diagnosis.predictor import Evidence, Predictor, evidence
from secateur.errors import UsageError
from secateur.generation.styles import STYLES
from secateur.pipeline.calibrate import check_set, existing_set, load_set, plan_calibration
from secateur.pipeline.calibration_stage import CalibrationStage
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.profile import Bench
from secateur.pipeline.profile_inputs import NamedText, find_reference, find_sets
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import Named, Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of

PLACE, FOUND, FORMAT = "recommendation", "recommendation.json", 1
OWN = ["self", "self:self-calibration"]
BUNDLED, FROM_HUB = ["stdlib-train", "site-packages", "prose"], ["c4", "wikipedia", "fineweb"]
TOLD_APART = 0.8
"""What the best is more likely than this to beat counts as worse; what it is not cannot be told from it."""


@dataclass(frozen=True)
class Candidate:
    """A ranked source. ``score``: log-odds, comparable within one recommendation only; ``spread``: its standard deviation
    over draws (``None`` of one draw); ``best``: probability that it is the best of all (Plackett-Luce); ``beaten_by_first``:
    that the first is better; ``diagnosis``: means over draws; ``why``: what each diagnosis adds to the score, against the
    mean of all candidates."""

    source: str
    score: float
    spread: float | None
    best: float
    beaten_by_first: float
    diagnosis: dict[str, float]
    why: dict[str, float]
    sets: list[str]


@dataclass(frozen=True)
class Recommendation:
    """Candidates, best first; ``tied``: sources that cannot be told from the first; ``predictor`` and ``evidence``: what says so."""

    model: str
    reference: str | None
    samples: int
    length: int
    candidates: list[Candidate]
    tied: list[str]
    predictor: dict[str, Any]
    evidence: dict[str, Any]
    folder: str = ""


@dataclass(frozen=True)
class Draw:
    """One set of one candidate: to be made, or there already."""

    source: str
    stage: CalibrationStage | None
    folder: Path | None

    @property
    def spec(self) -> Any:
        if self.stage is not None:
            return digest_of(self.stage.spec)
        assert self.folder is not None
        return find_sets([self.folder])[0].digest


@dataclass(frozen=True)
class RecommendPlan:
    """The candidates' draws, resolved and checked, and what ranks them."""

    recipe: Recipe
    model: ResolvedModel
    draws: Sequence[Draw]
    text: NamedText | None
    known: Evidence
    samples: int
    length: int

    @property
    def predictor(self) -> Predictor:
        return self.known.predictor(self.text is not None)

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the recommendation."""
        return {
            "stage": PLACE,
            "format": FORMAT,
            "model": self.model.digest,
            "draws": [[draw.source, draw.spec] for draw in self.draws],
            "reference": self.text and [self.text.name, self.text.fingerprint()],
            "predictor": asdict(self.predictor),
            "size": [self.samples, self.length],
            "seed": self.recipe.seed,
        }

    def folder(self, store: Path) -> Path:
        return store / PLACE / digest_of(self.spec)[:DIGEST_SHOWN]

    def run(self, store: Path, reporter: Reporter) -> Recommendation:
        """Make the sets that are missing, measure them, rank their sources; read back where the store has it."""
        final = self.folder(store)
        build(final, self.spec, lambda partial: self._make(partial, store, reporter))
        found = json.loads((final / FOUND).read_text(encoding="utf-8"))
        candidates = [Candidate(**one) for one in found.pop("candidates")]
        return Recommendation(**found | {"folder": str(final)}, candidates=candidates)

    def _make(self, folder: Path, store: Path, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        with phases.phase("generate"):
            folders = [draw.folder or self._made(draw, store, reporter) for draw in self.draws]
        with phases.phase("measure"):
            diagnoses = self._diagnoses(folders, reporter)
        found = self._rank(diagnoses, folders)
        text = json.dumps(asdict(found), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / FOUND).write_text(text + "\n", encoding="utf-8")
        return {"kind": PLACE, "model": found.model, "phases": phases.found, **environment()}

    def _made(self, draw: Draw, store: Path, reporter: Reporter) -> Path:
        assert draw.stage is not None
        return draw.stage.run(draw.stage.folder(store), reporter)

    def _diagnoses(self, folders: Sequence[Path], reporter: Reporter) -> list[dict[str, float]]:
        """Of each set the diagnoses that the predictor asks for, all measured on as many samples of one length."""
        bench = Bench(self.recipe, self.model, self.text, Options())
        wanted = {term.name for term in self.predictor.terms}
        only = [name for name, family in families().items() if wanted & family.quantities.keys()]
        found = []
        for done, folder in enumerate(folders):
            reporter.progress("sets measured", done, len(folders))
            samples = self._like_the_others(folder)
            values = measure(samples, bench.context, bench.reference, bench.skeleton, bench.options, only)
            found.append({name: values[name] for name in values if name in wanted})
        reporter.progress("sets measured", len(folders), len(folders))
        return found

    def _like_the_others(self, folder: Path) -> list[Sample]:
        samples = list(load_set(folder).samples)
        if len(samples) > self.samples:
            samples = random.Random(self.recipe.seed).sample(samples, self.samples)
        return [replace(one, token_ids=one.token_ids[: self.length], mean_logprob=None) for one in samples]

    def _rank(self, diagnoses: Sequence[Mapping[str, float]], folders: Sequence[Path]) -> Recommendation:
        predictor = self.predictor
        sources = list(dict.fromkeys(draw.source for draw in self.draws))
        mine = {name: [i for i, draw in enumerate(self.draws) if draw.source == name] for name in sources}
        scores = {name: [predictor.score(diagnoses[i]) for i in mine[name]] for name in sources}
        means = {name: statistics.mean(found) for name, found in scores.items()}
        ranked = sorted(sources, key=lambda name: -means[name])
        values = {
            name: {t.name: statistics.mean(t.value(diagnoses[i]) for i in mine[name]) for t in predictor.terms}
            for name in sources
        }
        total = math.fsum(math.exp(means[name] - means[ranked[0]]) for name in sources)
        candidates = [
            Candidate(
                source=name,
                score=means[name],
                spread=statistics.stdev(scores[name]) if len(scores[name]) > 1 else None,
                best=math.exp(means[name] - means[ranked[0]]) / total,
                beaten_by_first=1 / (1 + math.exp(means[name] - means[ranked[0]])),
                diagnosis={t.name: statistics.mean(diagnoses[i][t.name] for i in mine[name]) for t in predictor.terms},
                why={
                    t.name: t.weight * (values[name][t.name] - statistics.mean(values[n][t.name] for n in sources))
                    for t in predictor.terms
                },
                sets=[str(folders[i]) for i in mine[name]],
            )
            for name in ranked
        ]
        return Recommendation(
            model=self.model.name,
            reference=self.text.name if self.text else None,
            samples=self.samples,
            length=self.length,
            candidates=candidates,
            tied=[one.source for one in candidates[1:] if one.beaten_by_first < TOLD_APART],
            predictor=asdict(predictor),
            evidence={name: value for name, value in asdict(self.known).items() if name != "predictors"},
        )


def plan_recommendation(
    recipe: Recipe, sources: Sequence[str] = (), reference: str | None = None, draws: int = 2
) -> RecommendPlan:
    """Resolve and check a recommendation. Raises on whatever is wrong before anything is generated.

    ``sources``: candidates: a source by name, ``self``, ``self:STYLE``, or the folder of a finished set; empty: the model's own
    text in two styles and a few corpora. ``reference``: text like what the model must stay good at. ``draws``: sets of each,
    by successive seeds. The size is that of the evidence unless the recipe says otherwise.
    """
    if draws < 1:
        raise UsageError(f"A recommendation draws at least one set of each source; found {draws}.")
    known = evidence()
    model = resolve_model(recipe.model, recipe.revision)
    given = recipe.calibration.model_fields_set
    samples = recipe.calibration.samples if "samples" in given else known.samples
    length = recipe.calibration.length or min(known.length, model.length)
    calibration = recipe.calibration.model_copy(update={"samples": samples, "length": length})
    sized = recipe.model_copy(update={"calibration": calibration})
    if reference is None and model.is_reference:
        reference = known.reference
    names = list(sources) or [*OWN, *(BUNDLED if model.is_reference else FROM_HUB)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) < 2:
        raise UsageError(
            f"A recommendation compares two or more different sources; found {', '.join(twice or names)}"
            f"{' more than once' if twice else ' alone'}."
        )
    plan = RecommendPlan(
        sized,
        model,
        [draw for name in names for draw in _draws(name, sized, model, draws)],
        find_reference(reference, sized, model),
        known,
        samples,
        length,
    )
    _ = plan.predictor  # raises where there is none
    return plan


def _draws(name: str, recipe: Recipe, model: ResolvedModel, draws: int) -> list[Draw]:
    folder = existing_set(name)
    if folder is not None:
        check_set(folder, model)
        spec = recipe.calibration
        fits = sum(len(sample.token_ids) >= (spec.length or 0) for sample in find_sets([folder])[0].samples)
        if fits < spec.samples:
            raise UsageError(
                f"The calibration set {folder} has {fits} samples of {spec.length} tokens or more, and candidates are compared "
                f"by {spec.samples} each. Ask for fewer or shorter ones: calibration.samples, calibration.length."
            )
        return [Draw(name, None, folder)]
    source, _, style = name.partition(":")
    update: dict[str, Any] = {"source": name}
    if source == SELF and style:
        STYLES.load(style)
        generation = recipe.calibration.generation.model_copy(update={"style": Named(name=style)})
        update = {"source": SELF, "generation": generation}
    calibration = recipe.calibration.model_copy(update=update)
    recipes = [
        recipe.model_copy(update={"calibration": calibration, "seed": recipe.seed + number}) for number in range(draws)
    ]
    return [Draw(name, plan_calibration(one, model), None) for one in recipes]
