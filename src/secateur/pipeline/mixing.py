"""The weights of a mixture found by trials: amounts changed one source at a time, a fit of the loss, its best point."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from secateur.calibration.power_law import best_amounts, bootstrap_shares, fit
from secateur.journal import Journal
from secateur.pipeline.calibration_stage import shares
from secateur.pipeline.components import ResolvedModel, resolve_model
from secateur.pipeline.evaluate import EvaluationStage
from secateur.pipeline.mixing_plan import (
    BASE_AT_MOST,
    Search,
    Trial,
    amounts_at,
    check_search,
    check_texts,
    check_trials,
    make_trials,
    parts_of,
    plan_stages,
    plan_texts,
    setting_of,
)
from secateur.pipeline.mixing_trials import TrialRunner, known_losses, only_one
from secateur.pipeline.provenance import Phases, environment
from secateur.pipeline.recipe import Part, Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of

FORMAT = 1
FOUND, PLACE = "mixture.json", "mixtures"


@dataclass(frozen=True)
class Comparison:
    """The found amounts against equal ones, both pruned on ``seeds`` that the search did not use.

    ``difference``: mean over the seeds of the log perplexity of the found ones less that of the equal ones; ``half``: half
    its 95 % interval (Student t). ``verdict``: better or worse where that interval leaves out 0, else undecided.
    """

    seeds: list[int]
    equal: list[float]
    found: list[float]
    difference: float
    half: float
    verdict: str


@dataclass(frozen=True)
class Mixture:
    """What a search found, for a set of ``samples``, one entry for each of ``sources``.

    ``weights``: shares that sum to 1; ``amounts``: the same as whole samples; ``intervals``: 2.5 and 97.5 % of the weights
    over seeds drawn with replacement, ``None`` for one seed. ``beta``, ``gamma``, ``residual``: the fit (``PowerLaw``).
    ``loss_equal``, ``loss_found``: predicted for equal shares and these; ``gain`` their difference, ``noise`` half its 95 %
    interval. ``verdict``: better where the gain exceeds the noise, else undecided. ``untried``: sources whose amount lies
    outside those tried. ``trials``: losses that were fitted.
    """

    sources: list[str]
    samples: int
    weights: list[float]
    intervals: list[list[float]] | None
    amounts: list[int]
    beta: list[float]
    gamma: float
    residual: float
    loss_equal: float
    loss_found: float
    gain: float
    noise: float
    verdict: str
    untried: list[str]
    trials: int
    parts: list[dict[str, Any]]
    comparison: Comparison | None = None
    folder: str = ""

    def snippet(self) -> str:
        """The part of a recipe that asks for this mixture; sources that give nothing are left out."""
        lines = ["calibration:", "  source: mixture", f"  samples: {self.samples}", "  mixture:"]
        for part in self.parts:
            entries = ", ".join(f"{key}: {json.dumps(value)}" for key, value in part.items())
            lines.append(f"    - {{{entries}}}")
        return "\n".join(lines)


@dataclass(frozen=True)
class MixtureStage:
    """The resolved search: everything is checked, nothing is run.

    ``setting`` is what decides the loss of a trial, the amounts and the seed aside: searches that share it share their
    trials. ``fresh``: seeds for the comparison. ``texts``: what the loss is measured on.
    """

    recipe: Recipe
    model: ResolvedModel
    parts: Sequence[Part]
    trials: Sequence[Trial]
    samples: int
    fresh: Sequence[int]
    texts: Sequence[EvaluationStage]
    setting: dict[str, Any]
    spec: dict[str, Any]

    def folder(self, store: Path) -> Path:
        return store / PLACE / digest_of(self.spec)[:DIGEST_SHOWN]

    def journal(self, store: Path) -> Path:
        """Where the losses of all trials of this setting are kept."""
        return store / PLACE / f"trials-{digest_of(self.setting)[:DIGEST_SHOWN]}.jsonl"

    def done(self, store: Path) -> set[Trial]:
        """The trials of this setting whose losses are known."""
        journal = self.journal(store)
        return set(known_losses(Journal(journal))) if journal.exists() else set()

    def run(self, store: Path, reporter: Reporter) -> Mixture:
        """The mixture; trials that the store has are not run again. Raises ``NumericsError`` for a loss that is no number."""
        final = self.folder(store)
        build(final, self.spec, lambda partial: self._make(partial, store, reporter))
        found = json.loads((final / FOUND).read_text(encoding="utf-8"))
        comparison = found["comparison"] and Comparison(**found["comparison"])
        return Mixture(**found | {"comparison": comparison, "folder": str(final)})

    def _make(self, folder: Path, store: Path, reporter: Reporter) -> dict[str, Any]:
        phases = Phases()
        place = folder / "trial"
        with only_one(self.journal(store)) as journal:
            runner = TrialRunner(self.recipe, self.model, self.parts, self.texts, journal, place, store, reporter)
            with phases.phase("search"):
                mixture = self._solve(runner.losses(self.trials, "trials"))
            if self.fresh:
                with phases.phase("compare"):
                    mixture = replace(mixture, comparison=self._compare(mixture.amounts, runner))
        shutil.rmtree(place, ignore_errors=True)
        (folder / FOUND).write_text(json.dumps(asdict(mixture), indent=1) + "\n", encoding="utf-8")
        return {"kind": "mixture", "recipe": self.recipe.model_dump(), "phases": phases.found, **environment()}

    def _solve(self, losses: Sequence[float]) -> Mixture:
        counts, seeds = [trial.amounts for trial in self.trials], [trial.seed for trial in self.trials]
        law = fit(counts, losses, seeds)
        best, equal = (
            best_amounts(law.beta, law.gamma, self.samples),
            [self.samples / len(self.parts)] * len(self.parts),
        )
        gain, error = law.gain(equal, best)
        noise = float(student.ppf(0.975, law.freedom)) * error
        interval = bootstrap_shares(counts, losses, seeds, self.samples)
        weights = (best / self.samples).tolist()
        amounts = shares(weights, self.samples)
        tried = [(min(column), max(column)) for column in zip(*counts, strict=True)]
        outside = [not low <= amount <= high for amount, (low, high) in zip(amounts, tried, strict=True)]
        names = [part.source for part in self.parts]
        return Mixture(
            sources=names,
            samples=self.samples,
            weights=weights,
            intervals=None if interval is None else interval.T.tolist(),
            amounts=amounts,
            beta=law.beta.tolist(),
            gamma=law.gamma,
            residual=law.residual,
            loss_equal=law.loss(equal),
            loss_found=law.loss(best),
            gain=gain,
            noise=noise,
            verdict="better" if gain > noise else "undecided",
            untried=[name for name, far in zip(names, outside, strict=True) if far],
            trials=len(losses),
            parts=[
                part.model_dump(exclude={"weight"}, exclude_defaults=True) | {"weight": amount}
                for part, amount in zip(self.parts, amounts, strict=True)
                if amount
            ],
        )

    def _compare(self, amounts: Sequence[int], runner: TrialRunner) -> Comparison:
        equal = amounts_at(len(self.parts), self.samples)
        wanted = [Trial(kind, seed) for seed in self.fresh for kind in (equal, tuple(amounts))]
        losses = runner.losses(wanted, "comparisons")
        differences = [found - other for other, found in zip(losses[::2], losses[1::2], strict=True)]
        mean = statistics.mean(differences)
        half = float(student.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
        verdict = "worse" if mean > half else "better" if mean < -half else "undecided"
        return Comparison(list(self.fresh), losses[::2], losses[1::2], mean, half, verdict)


def plan_mixture(recipe: Recipe, sources: Sequence[str | Part] = (), search: Search | None = None) -> MixtureStage:
    """Resolve and check a search. Raises on whatever is wrong with what was asked, before anything is run.

    ``sources``: those to mix, ``self`` among them if wanted; empty: those of the recipe's mixture.
    """
    search = search or Search()
    parts = parts_of(recipe, sources)
    samples = recipe.calibration.samples if search.samples is None else search.samples
    base = min(samples, BASE_AT_MOST) if search.base is None else search.base
    check_search(search, len(parts), samples, base)
    seeds = [recipe.seed + number for number in range(search.seeds)]
    fresh = [seeds[-1] + 1 + number for number in range(search.compare)]
    trials = make_trials(len(parts), base, search.factor, seeds)
    check_trials(trials, len(parts), len(seeds))
    model = resolve_model(recipe.model, recipe.revision)
    calibration, pruning = plan_stages(recipe, parts, trials[0], model)
    texts = plan_texts(recipe, model, search.texts)
    check_texts(calibration, texts)
    setting = setting_of(calibration, pruning, texts)
    spec = {"stage": "mixture", "format": FORMAT, "setting": setting, "samples": samples, "fresh": fresh}
    spec["trials"] = [[list(trial.amounts), trial.seed] for trial in trials]
    return MixtureStage(recipe, model, parts, trials, samples, fresh, texts, setting, spec)
