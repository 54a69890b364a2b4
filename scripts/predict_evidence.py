"""From the cells of ``predict_study.py`` to what ``secateur recommend`` stands on: src/secateur/diagnosis/evidence.json.

    python scripts/predict_evidence.py --study docs/results/predict --out src/secateur/diagnosis/evidence.json

The rule, fixed beforehand: of the diagnoses that need no reference text the one of largest mean rank correlation with the loss after
pruning; beside it, for use with a reference, the one of largest such correlation of those that need one. A logistic model without
intercept is fitted to "which set of two prunes better" over all pairs of one seed, method and pattern. How often it is right is
counted on pairs of sets of which neither had a part in choosing or fitting.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from predict_study import METHODS, MODEL, SETS, SIZE, TARGETS, interval
from secateur.diagnosis.predictor import Predictor, Term
from secateur.journal import Journal

REFERENCE = "stdlib-train"
OF_A_REFERENCE = {"jaccard", "jaccard_minhash", "containment", "reference_mass_covered", "unigram_kl", "unigram_js"}
OF_A_REFERENCE |= {"norm_distance", "norm_correlation", "norm_rank_correlation"}
OF_A_REFERENCE |= {"mask_overlap_reference", "mask_agreement_reference"}
LOGARITHMS = {"effective_rank", "perplexity", "perplexity_median", "perplexity_p10", "perplexity_p90"}
LOGARITHMS |= {"unigram_js", "unigram_kl", "norm_distance", "compression_ratio"}
LEFT_OUT = {"jaccard_minhash_error"}
"""A function of another diagnosis."""
RIDGE = 0.005
Row = tuple[str, int, dict[str, float], list[float]]
"""A set, its seed, its diagnosis, its losses by method and pattern."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = rows_of(asked.study)
    predictors = {"alone": predictor(rows, False), "reference": predictor(rows, True)}
    sizes = {one.split(".")[1].split("=")[0]: int(one.split("=")[1]) for one in SIZE}
    found = {
        "model": MODEL,
        "reference": REFERENCE,
        "sets": len({row[0] for row in rows}),
        "seeds": len({row[1] for row in rows}),
        "methods": list(METHODS),
        "targets": list(TARGETS),
        **sizes,
        "ceiling": ceiling(rows),
        "predictors": {name: asdict(one) for name, one in predictors.items()},
    }
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"knowing the mean loss on the other seeds: right on {found['ceiling']:.1%}")
    for name, one in predictors.items():
        print(name, *(f"{term.name} {term.weight:+.3g} (rho {term.rho:+.2f})" for term in one.terms), sep=", ")
        print(f"  right on {one.right:.1%} of {one.pairs:,} pairs, {one.likelihood:.3f} nats")


def rows_of(study: Path) -> list[Row]:
    """The sets whose diagnosis and all of whose losses are there."""
    losses = {}
    for path in sorted(study.glob("cells-*.jsonl")):
        for cell in Journal(path).entries:
            losses[cell["set"], cell["seed"], cell["method"], cell["target"]] = cell["loss"]
    rows = []
    for path in sorted(study.glob("sets-*.jsonl")):
        for entry in Journal(path).entries:
            mine = [losses.get((entry["set"], entry["seed"], m, t)) for m in METHODS for t in TARGETS]
            if entry["set"] in SETS and None not in mine:
                rows.append((entry["set"], entry["seed"], entry["diagnosis"], mine))
    return rows


def predictor(rows: Sequence[Row], reference: bool) -> Predictor:
    """Chosen and fitted on all rows; judged on pairs of sets left out of both."""
    names = chosen(rows, reference)
    weights = fit(pairs_of(rows), names)
    terms = []
    for name, weight in zip(names, weights, strict=True):
        mean, half = interval(correlations_of(rows, [name])[:, 0].tolist())
        terms.append(Term(name, float(weight), name in LOGARITHMS, mean, mean - half, mean + half))
    right, likelihood, count = left_out(rows, reference)
    return Predictor(terms, right, likelihood, count)


def chosen(rows: Sequence[Row], reference: bool) -> list[str]:
    """The strongest diagnosis that needs no reference, and if there is one, the strongest that does."""
    known = sorted(set.intersection(*(set(row[2]) for row in rows)) - LEFT_OUT)
    strength = dict(zip(known, np.abs(correlations_of(rows, known).mean(axis=0)).tolist(), strict=True))
    pools = [[name for name in known if name not in OF_A_REFERENCE]]
    if reference:
        pools.append([name for name in known if name in OF_A_REFERENCE])
    return [max(pool, key=strength.__getitem__) for pool in pools]


def correlations_of(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """``[seeds, names]``: Spearman's correlation over sets of each diagnosis with the loss, mean over methods and patterns; 0
    for one that all sets have alike."""
    found = []
    for seed in sorted({row[1] for row in rows}):
        mine = [row for row in rows if row[1] == seed]
        values = standard_ranks([[row[2][name] for name in names] for row in mine])
        losses = standard_ranks([row[3] for row in mine])
        found.append((values.T @ losses / len(mine)).mean(axis=1))
    return np.array(found)


def standard_ranks(table: Sequence[Sequence[float]]) -> np.ndarray:
    """Ranks within each column, of mean 0 and variance 1, or all 0 where the column is constant."""
    ranks = rankdata(np.array(table), axis=0)
    ranks -= ranks.mean(axis=0)
    size = ranks.std(axis=0)
    return np.divide(ranks, size, out=np.zeros_like(ranks), where=size > 0)


def pairs_of(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    seeds = sorted({row[1] for row in rows})
    return [pair for seed in seeds for pair in itertools.combinations([row for row in rows if row[1] == seed], 2)]


def differences(pairs: Sequence[tuple[Row, Row]], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """``[pairs * cells, names]`` first less second, and 1 where the first prunes better, else -1."""
    terms = [Term(name, 1.0, name in LOGARITHMS, 0.0, 0.0, 0.0) for name in names]
    values = [[term.value(one[2]) - term.value(other[2]) for term in terms] for one, other in pairs]
    cells = len(pairs[0][0][3])
    signs = [1.0 if one[3][cell] < other[3][cell] else -1.0 for one, other in pairs for cell in range(cells)]
    return np.repeat(np.array(values), cells, axis=0), np.array(signs)


def fit(pairs: Sequence[tuple[Row, Row]], names: Sequence[str]) -> np.ndarray:
    values, signs = differences(pairs, names)
    scale = values.std(axis=0) + 1e-12
    scaled = values / scale

    def loss(weights: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs * (scaled @ weights)).mean() + RIDGE * (weights**2).sum())

    return minimize(loss, np.zeros(len(names))).x / scale


def left_out(rows: Sequence[Row], reference: bool) -> tuple[float, float, int]:
    """Share of pairs ordered right, mean log-probability of what happened, and their number: each two sets left out in turn."""
    right: list[float] = []
    likelihood: list[float] = []
    for two in itertools.combinations(sorted({row[0] for row in rows}), 2):
        others = [row for row in rows if row[0] not in two]
        tested = [pair for pair in pairs_of(rows) if {pair[0][0], pair[1][0]} == set(two)]
        names = chosen(others, reference)
        values, signs = differences(tested, names)
        odds = signs * (values @ fit(pairs_of(others), names))
        right += (odds > 0).tolist()
        likelihood += (-np.logaddexp(0, -odds)).tolist()
    return math.fsum(right) / len(right), math.fsum(likelihood) / len(likelihood), len(right)


def ceiling(rows: Sequence[Row]) -> float:
    """Share of the same pairs that the sets' mean losses on the other seeds order right: what knowing the answer is worth."""
    losses = {(row[0], row[1]): np.array(row[3]) for row in rows}
    seeds = sorted({row[1] for row in rows})
    right: list[float] = []
    for one, other in pairs_of(rows):
        rest = [losses[one[0], seed] - losses[other[0], seed] for seed in seeds if seed != one[1]]
        right += (np.mean(rest, axis=0) * (np.array(one[3]) - np.array(other[3])) > 0).tolist()
    return math.fsum(right) / len(right)


if __name__ == "__main__":
    main()
