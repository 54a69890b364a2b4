"""Which of two calibration sets leaves the better pruned model, told from what they are like before anything is pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from secateur.errors import UsageError


@dataclass(frozen=True)
class Term:
    """One diagnosis in a predictor: ``weight`` is log-odds a unit, of its logarithm if ``log``. ``rho``, ``low``, ``high``: its own
    rank correlation with the loss after pruning in the evidence, mean over seeds, methods and patterns, and its interval."""

    name: str
    weight: float
    log: bool
    rho: float
    low: float
    high: float

    def value(self, diagnosis: Mapping[str, float]) -> float:
        found = diagnosis[self.name]
        return math.log(max(found, 1e-12)) if self.log else found


@dataclass(frozen=True)
class Predictor:
    """A logistic model of "this set prunes better than that one" from the differences of a few diagnoses (Bradley and Terry
    1952, with covariates). ``right``: share of the evidence's pairs that it orders right when the sets of the pair had no part in
    the fit; ``likelihood``: mean log-probability it then gives to what happened, in nats (a coin: -0.693)."""

    terms: Sequence[Term]
    right: float
    likelihood: float
    pairs: int

    def score(self, diagnosis: Mapping[str, float]) -> float:
        """Log-odds up to a constant: higher is better."""
        return math.fsum(term.weight * term.value(diagnosis) for term in self.terms)


@dataclass(frozen=True)
class Evidence:
    """What the predictors stand on: a study of sets on one model. ``predictors``: by ``reference`` (needs a text to compare
    with) and ``alone``. ``ceiling``: share of pairs that the sets' losses on other seeds order right."""

    model: str
    reference: str
    sets: int
    seeds: int
    methods: Sequence[str]
    targets: Sequence[str]
    samples: int
    length: int
    ceiling: float
    predictors: Mapping[str, Predictor]

    def predictor(self, reference: bool) -> Predictor:
        """Raises ``UsageError`` where no diagnosis of that kind proved predictive."""
        name = "reference" if reference else "alone"
        if name not in self.predictors:
            raise UsageError(
                "No diagnosis that does without a reference text proved predictive of the pruned model's quality; name a text "
                "like what the model must stay good at with --reference."
            )
        return self.predictors[name]


def evidence() -> Evidence:
    """That of the package, which ``scripts/predict_study.py`` made (docs/results/predict)."""
    found = json.loads(resources.files("secateur.diagnosis").joinpath("evidence.json").read_text(encoding="utf-8"))
    predictors = {
        name: Predictor(**one | {"terms": [Term(**term) for term in one["terms"]]})
        for name, one in found.pop("predictors").items()
    }
    return Evidence(**found, predictors=predictors)
