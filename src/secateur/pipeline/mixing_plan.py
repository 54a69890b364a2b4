"""What a search for mixture weights will try, and everything about it that can be checked before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.calibration.sources.resolve import MIXTURE
from secateur.errors import UsageError
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.calibration_stage import CalibrationStage, shares
from secateur.pipeline.components import ResolvedModel
from secateur.pipeline.evaluate import EvaluationStage, plan_evaluation
from secateur.pipeline.prune import PruningStage, plan_prune
from secateur.pipeline.recipe import Part, Recipe

BASE_AT_MOST = 64


@dataclass(frozen=True)
class Trial:
    """So many samples of each source, drawn by ``seed``."""

    amounts: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Search:
    """What is asked of a search.

    ``samples``: of the set that the weights are for; ``None``: the recipe's. ``base``: of the trial that the others change;
    ``None``: as many, at most ``BASE_AT_MOST``. ``factor``: by which one source's amount is multiplied and divided.
    ``seeds``: draws of every trial, from the recipe's seed on. ``compare``: fresh seeds after those on which the weights
    found are compared with equal ones; 0: none. ``texts``: validation sources; empty: that of the recipe's evaluation.
    """

    samples: int | None = None
    base: int | None = None
    factor: float = 3.0
    seeds: int = 3
    compare: int = 0
    texts: Sequence[str] = ()


def amounts_at(sources: int, total: int) -> tuple[int, ...]:
    """``total`` samples in equal shares, earlier sources first where they do not come out even."""
    return tuple(shares([1.0] * sources, total))


def make_trials(sources: int, base: int, factor: float, seeds: Sequence[int]) -> list[Trial]:
    """Equal amounts, and for each source its amount times and by ``factor``, the others unchanged; on every seed.

    Amounts are whole and at least 1; what comes out the same is tried once. At most ``(2 * sources + 1) * seeds``.
    """
    equal = amounts_at(sources, base)
    kinds = [equal]
    for index, amount in enumerate(equal):
        for changed in (round(amount * factor), max(1, round(amount / factor))):
            kinds.append((*equal[:index], changed, *equal[index + 1 :]))
    return [Trial(kind, seed) for seed in seeds for kind in dict.fromkeys(kinds)]


def trial_recipe(recipe: Recipe, parts: Sequence[Part], trial: Trial) -> Recipe:
    """The recipe of one trial: a mixture of exactly its amounts."""
    mixture = [
        part.model_copy(update={"weight": float(amount)})
        for part, amount in zip(parts, trial.amounts, strict=True)
        if amount
    ]
    asked = {"source": MIXTURE, "mixture": mixture, "samples": sum(trial.amounts)}
    calibration = recipe.calibration.model_copy(update=asked)
    return recipe.model_copy(update={"seed": trial.seed, "calibration": calibration})


def parts_of(recipe: Recipe, sources: Sequence[str | Part]) -> list[Part]:
    """The sources to mix: those given, or those of the recipe's mixture. Raises ``UsageError`` unless they are several."""
    key = recipe.calibration.text_key
    given = [Part(source=one, text_key=key) if isinstance(one, str) else one for one in sources]
    parts = given or recipe.calibration.mixture
    names = [part.source for part in parts]
    if len(parts) < 2:
        raise UsageError(
            f"A mixture has at least 2 sources, found {', '.join(map(repr, names)) or 'none'}; give --source for each, or a "
            "recipe with calibration.mixture."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"The source {twice[0]!r} was given {names.count(twice[0])} times; give each source once.")
    if MIXTURE in names:
        raise UsageError("A mixture cannot be one of the sources of a mixture; give its sources themselves.")
    return list(parts)


def check_search(search: Search, sources: int, samples: int, base: int) -> None:
    """Raise ``UsageError`` for numbers that make no search."""
    for what, number in (("samples", samples), ("samples of the first trial (base)", base)):
        if number < sources:
            raise UsageError(
                f"{number} {what} cannot be shared by {sources} sources: each gives at least one; ask for {sources} or more."
            )
    if not 1 < search.factor < float("inf"):
        raise UsageError(f"The factor of the amounts must be larger than 1, found {search.factor:g}; the default is 3.")
    if search.seeds < 1:
        raise UsageError(f"A search takes at least 1 seed, found {search.seeds}; the default is 3.")
    if search.compare < 0 or search.compare == 1:
        raise UsageError(
            f"A comparison takes at least 2 fresh seeds to have an interval, found {search.compare}; give 2 or more, or 0 "
            "for none."
        )


def check_trials(trials: Sequence[Trial], sources: int, seeds: int) -> None:
    """Raise ``UsageError`` where there are no more losses than unknowns to fit."""
    unknowns = seeds + sources + 1
    if len(trials) <= unknowns:
        raise UsageError(
            f"{len(trials)} trials are too few to fit {unknowns} unknowns: with {trials[0].amounts} samples to begin with, "
            "some amounts cannot be made smaller. Give more seeds, or a larger base (2 or more for each source)."
        )


def check_needs_data(stage: PruningStage) -> None:
    """Raise ``UsageError`` for a pruning that no calibration data can change."""
    if not stage.needs_data:
        raise UsageError(
            f"The method {stage.recipe.pruning.method.name!r} needs no calibration data, so there is nothing to mix; choose "
            "another, such as --set pruning.method=wanda."
        )


def check_texts(calibration: CalibrationStage, texts: Sequence[EvaluationStage]) -> None:
    """Raise ``UsageError`` where a validation text is itself a source, which would only find that it helps itself."""
    by_content = {
        part.source.fingerprint(): part.name for part in calibration.parts if part.source and part.source.fingerprint()
    }
    for text in texts:
        same = by_content.get(text.spec["text_fingerprint"])
        if same is not None:
            raise UsageError(
                f"The validation text {text.source.name!r} and the source {same!r} are the same text, so the search would "
                "only find that it helps itself; name held-out text with --text, or leave that source out."
            )


def plan_texts(recipe: Recipe, model: ResolvedModel, names: Sequence[str]) -> list[EvaluationStage]:
    """The evaluations that give the loss: of the sources ``names``, or of the recipe's own text."""
    found = []
    for name in names or [recipe.evaluation.text]:
        asked = recipe.evaluation.model_copy(update={"text": name})
        found.append(plan_evaluation(recipe.model_copy(update={"evaluation": asked}), model))
    return found


def setting_of(
    calibration: CalibrationStage, pruning: PruningStage, texts: Sequence[EvaluationStage]
) -> dict[str, Any]:
    """What decides the loss of a trial besides its amounts and its seed."""
    data = {key: value for key, value in calibration.spec.items() if key not in {"seed", "samples", "mixture"}}
    sources = [part.model_dump(exclude={"weight"}) for part in calibration.recipe.calibration.mixture]
    return {
        "sources": sources,
        "calibration": data,
        "pruning": pruning.spec(None),
        "validation": [text.spec for text in texts],
    }


def plan_stages(
    recipe: Recipe, parts: Sequence[Part], trial: Trial, model: ResolvedModel
) -> tuple[CalibrationStage, PruningStage]:
    """The stages of one trial, resolved and checked."""
    one = trial_recipe(recipe, parts, trial)
    pruning = plan_prune(one, model)
    check_needs_data(pruning)
    return plan_calibration(one, model), pruning
