"""What a study answers, on made-up numbers of which the answer is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from secateur.errors import RecipeError, UnknownNameError
from secateur.settings import make
from secateur.studies.comparisons import COMPARISONS
from secateur.studies.intervals import estimate, expected_range, holm, jackknife
from secateur.studies.table import Row, Table

SOURCES, METHODS, SPARSITIES = ("self", "web", "prose"), ("wanda", "sparsegpt"), ("0.5", "0.6", "0.7")
AXES = {"source": SOURCES, "method": METHODS, "sparsity": SPARSITIES}
NUMBERS = {"source": None, "method": None, "sparsity": [0.5, 0.6, 0.7]}


def table(value, seeds=10, missing=(), metric="perplexity", facts=lambda labels, seed: {}, sign=-1.0, axes=AXES):
    """A study whose cell (labels by axis, seed) has log perplexity (else the value) ``value``."""
    rows = []
    for labels in itertools.product(*axes.values()):
        where = dict(zip(axes, labels, strict=True))
        for seed in range(seeds):
            found = value(where, seed)
            gone = (where["source"], seed) in missing
            shown = math.exp(found) if metric == "perplexity" else found
            rows.append(Row(labels, seed, {} if gone else {metric: shown}, facts(where, seed)))
    return Table(axes, NUMBERS, rows, metric, sign)


def noise(scale=0.01):
    """Noise by cell, and a part that all cells of a seed share, fifty times as large."""
    random = np.random.default_rng(0)
    shared = random.normal(size=100) * 50 * scale
    drawn: dict = {}
    return lambda where, seed: drawn.setdefault((*where.values(), seed), random.normal() * scale) + shared[seed]


def answer(kind, data, **settings):
    comparison = make(COMPARISONS, kind, settings)
    comparison.check(data.axes, data.numbers)
    return comparison.answered(data)


def test_a_small_difference_is_found_because_seeds_are_paired():
    drawn = noise()
    data = table(lambda where, seed: 2 + drawn(where, seed) - 0.06 * (where["source"] == "self"))
    found = answer("difference", data, axis="source", baseline="prose")
    assert len(found["groups"]) == 2 * 3 * 2
    mine = [group for group in found["groups"] if group["a"] == "self"]
    assert all(group["n"] == 10 and group["low"] <= group["estimate"] <= group["high"] for group in mine)
    assert all(group["verdict"] == "supported" for group in mine)
    assert all(group["p"] <= group["p_adjusted"] <= 1 for group in found["groups"])
    assert "'self': -5." in found["sentence"] or "'self': -6." in found["sentence"]
    assert "'web'" in found["sentence"]
    assert found["verdict"] == "undecided"  # of web it is not so
    assert found["estimate"] is None  # the mean of several candidates says nothing
    assert [(one["a"], one["verdict"]) for one in found["candidates"]] == [("self", "supported"), ("web", "undecided")]
    assert all(one["p"] <= one["p_adjusted"] for one in found["candidates"])
    assert "Candidates: Holm over the family of 2 tests." in found["sentence"]
    alone = answer("difference", data, axis="source", baseline="prose", candidates=["self"])
    assert alone["verdict"] == "supported"
    assert alone["low"] < -0.06 < alone["high"] < 0
    assert alone["adjustment"] == "Holm over the family of 6 tests"
    assert (
        answer("difference", data, axis="source", baseline="self", candidates=["prose"])["verdict"] == "not supported"
    )
    assert (
        answer("difference", data, axis="source", baseline="self", candidates=["prose"], claim="worse")["verdict"]
        == "supported"
    )


def test_a_source_whose_draws_differ_less_is_steadier():
    random = np.random.default_rng(3)
    scale = {"self": 0.01, "web": 0.1, "prose": 0.1}
    data = table(lambda where, seed: 2 + random.normal() * scale[where["source"]], seeds=20)
    found = answer("steadiness", data, axis="source", baseline="self", claim="worse")
    assert found["question"] == "Is every other less steady over seeds than 'self' on source?"
    assert found["verdict"] == "supported"
    assert found["metric"] == "perplexity"
    assert found["unit"] == "deviation of log perplexity"
    group = found["groups"][0]
    series = [list(data.series({**group["where"], "source": name}).values()) for name in ("self", group["a"])]
    own, other = (np.abs(np.array(values) - np.median(values)) for values in series)
    assert group["estimate"] == pytest.approx(float((other - own).mean()))
    assert stats.levene(*series, center="median").pvalue < 0.01  # the test that these deviations are of
    even = answer("steadiness", data, axis="source", baseline="web", candidates=["prose"])
    assert even["verdict"] == "undecided"
    higher = table(lambda where, seed: random.normal() * scale[where["source"]], seeds=20, metric="piqa/acc", sign=1.0)
    assert answer("steadiness", higher, axis="source", baseline="web", candidates=["self"])["verdict"] == "supported"


def test_the_interval_is_student_s_and_the_bootstrap_s():
    values = [0.2, 0.1, 0.4, 0.15, 0.3]
    found = estimate(values)
    expected = stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))
    assert found.p == pytest.approx(expected.pvalue)
    assert min(values) < found.bootstrap_low < found.mean < found.bootstrap_high < max(values)
    assert found.bootstrap_high - found.bootstrap_low < found.high - found.low


def test_the_jackknife_of_a_mean_is_student_s():
    values = np.array([0.2, 0.1, 0.4, 0.15, 0.3])
    found, expected = jackknife(lambda some: float(some.mean()), values), estimate(list(values))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert jackknife(lambda some: float(some.mean()), values[:2]).low is None


def test_without_any_difference_few_groups_are_called_one():
    random = np.random.default_rng(1)
    data = table(lambda where, seed: 2 + random.normal() * 0.1)
    found = answer("difference", data, axis="source", baseline="web", claim="different")
    assert [group["verdict"] for group in found["groups"]].count("undecided") >= 11


def test_missing_cells_lower_n_and_are_no_zeros():
    drawn = noise()
    data = table(lambda where, seed: 2 + drawn(where, seed), missing={("self", 0), ("prose", 1), ("prose", 2)})
    found = answer("difference", data, axis="source", baseline="prose", candidates=["self"])
    assert {group["n"] for group in found["groups"]} == {7}
    assert all(abs(group["estimate"]) < 0.1 for group in found["groups"])
    assert "7 paired seeds" in found["sentence"]
    gone = table(lambda where, seed: 2.0, missing={("self", seed) for seed in range(10)})
    for kind, settings in {
        "difference": {"axis": "source", "baseline": "prose", "candidates": ["self"]},
        "effects": {"axis": "source", "against": "method"},
        "spread": {"axis": "source", "along": "sparsity"},
    }.items():
        found = answer(kind, gone, **settings)
        assert found["verdict"] == "undecided"
        assert found["estimate"] is None


def test_one_seed_decides_nothing():
    drawn = noise()
    data = table(lambda where, seed: 2 + drawn(where, seed), seeds=1)
    found = answer("difference", data, axis="source", baseline="prose")
    assert found["verdict"] == "undecided"
    assert "no interval" in found["sentence"]
    assert all(group["n"] == 1 and group["low"] is None and group["p"] is None for group in found["groups"])


@pytest.mark.parametrize(("slope", "verdict"), [(0.4, "supported"), (-0.4, "not supported"), (0.0, "undecided")])
def test_a_range_that_grows_with_sparsity(slope, verdict):
    drawn = noise(0.004)

    def value(where, seed):
        rank = SOURCES.index(where["source"])
        return 2 + drawn(where, seed) + rank * (0.2 + slope * (float(where["sparsity"]) - 0.6)) / 2

    found = answer("spread", table(value), axis="source", along="sparsity")
    assert found["verdict"] == verdict
    assert found["low"] < slope < found["high"]
    levels = found["groups"][0]["levels"]
    assert [level["label"] for level in levels] == list(SPARSITIES)
    assert levels[1]["estimate"] == pytest.approx(0.2, abs=0.02)
    assert all(level["noise"] < 0.02 for level in levels)


@pytest.mark.parametrize("effect", [0.0, 0.01])
def test_noise_that_grows_is_no_range_that_grows(effect):
    random, verdicts = np.random.default_rng(3), []
    for _ in range(20):
        data = table(
            lambda where, seed: (
                2 + effect * SOURCES.index(where["source"]) + random.normal() * 0.2 * float(where["sparsity"]) ** 6
            )
        )
        found = answer("spread", data, axis="source", along="sparsity")
        assert found["low"] > 0  # the range itself grows
        verdicts.append(found["verdict"])
        if verdicts[-1] == "undecided":
            assert "undecided whether it grows, for what is beyond the noise does not for sure." in found["sentence"]
    assert verdicts.count("supported") <= 2
    assert found["beyond_noise"]["low"] < found["beyond_noise"]["high"]
    first = found["groups"][0]["levels"][0]
    assert (first["noise"] == pytest.approx(first["estimate"], rel=0.5)) == (effect == 0)


def test_a_range_is_of_the_labels_that_every_level_has():
    random = np.random.default_rng(0)
    data = table(lambda where, seed: 2 + 0.1 * SOURCES.index(where["source"]) + random.normal() * 0.001)
    fewer = replace(data, rows=[row for row in data.rows if row.labels[0] != "prose" or row.labels[2] != "0.5"])
    found = answer("spread", fewer, axis="source", along="sparsity")
    assert found["verdict"] == "undecided"  # one label less at 0.5 is no range that grows
    assert all(level["labels"] == 2 for group in found["groups"] for level in group["levels"])
    alone = replace(data, rows=[row for row in data.rows if row.labels[0] == "web" or row.labels[2] != "0.5"])
    found = answer("spread", alone, axis="source", along="sparsity")
    assert (found["verdict"], found["estimate"]) == ("undecided", None)


def test_two_axes_that_do_nothing_are_not_compared_by_how_many_labels_they_have():
    random, verdicts = np.random.default_rng(5), []
    for _ in range(20):
        drawn = {(source, seed): random.normal() * 0.02 for source in SOURCES for seed in range(10)}
        data = table(lambda where, seed: 2 + drawn[where["source"], seed] + random.normal() * 0.002)
        verdicts.append(answer("effects", data, axis="source", against="method")["verdict"])
    assert verdicts.count("supported") <= 1


def test_a_setting_that_failed_leaves_the_whole_undecided():
    random = np.random.default_rng(0)
    data = table(lambda where, seed: 2 - 0.1 * (where["source"] == "self") + random.normal() * 0.001)
    gone = [
        Row(row.labels, row.seed) if row.labels[0] == "self" and row.labels[2] == "0.7" else row for row in data.rows
    ]
    found = answer("difference", replace(data, rows=gone), axis="source", baseline="web", candidates=["self"])
    assert found["verdict"] == "undecided"
    assert "10 paired seeds in 4 of 6 settings; the others lack cells" in found["sentence"]


def test_ranks_serve_where_labels_are_no_numbers():
    drawn = noise(0.001)
    data = table(
        lambda where, seed: 2 + drawn(where, seed) + METHODS.index(where["method"]) * (where["source"] == "web")
    )
    found = answer("spread", data, axis="source", along="method")
    assert found["verdict"] == "supported"
    assert found["estimate"] == pytest.approx(1, abs=0.01)
    assert found["unit"].endswith("per step of method")


def test_a_trend_per_unit_and_per_doubling():
    drawn = noise(0.001)
    data = table(lambda where, seed: drawn(where, seed) + 3 * float(where["sparsity"]))
    found = answer("trend", data, axis="sparsity")
    assert found["estimate"] == pytest.approx(3, abs=0.05)
    assert found["verdict"] == "not supported"
    assert answer("trend", data, axis="sparsity", claim="worse")["verdict"] == "supported"
    doubled = table(lambda where, seed: drawn(where, seed) - math.log2(float(where["sparsity"])))
    found = answer("trend", doubled, axis="sparsity", scale="log2")
    assert found["estimate"] == pytest.approx(-1, abs=0.02)
    assert found["verdict"] == "supported"


def test_a_fact_that_goes_with_the_metric():
    drawn = noise(0.001)
    likeness = {"self": 0.3, "web": 0.2, "prose": 0.1, "law": 0.4, "verse": 0.5, "code": 0.6}
    data = table(
        lambda where, seed: 2 + drawn(where, seed) - likeness[where["source"]],
        facts=lambda where, seed: {"jaccard": likeness[where["source"]] + seed / 100},
        axes=AXES | {"source": tuple(likeness)},
    )
    found = answer("correlation", data, axis="source", fact="jaccard")
    assert found["estimate"] == pytest.approx(-1)
    assert found["p"] == pytest.approx(2 / math.factorial(6))  # the best order of 6, either way round
    assert found["verdict"] == "supported"  # lower perplexity is better
    assert "over 6 labels of source is -1.00 (95 % interval -1.00 to -1.00, p 0.003 by permutation" in found["sentence"]
    assert answer("correlation", data, axis="source", fact="tokens")["verdict"] == "undecided"
    point = found["groups"][0]["points"][0]
    assert point["fact"] == 0.3
    assert point["value"] == pytest.approx(math.exp(data.series({axis: labels[0] for axis, labels in AXES.items()})[0]))


def test_a_chance_order_of_sources_that_every_seed_repeats_is_no_correlation():
    random, verdicts = np.random.default_rng(2), []
    names = tuple("abcdef")
    for _ in range(40):
        quality, fact = (dict(zip(names, random.normal(size=6), strict=True)) for _ in range(2))
        data = table(
            lambda where, seed: 2 + quality[where["source"]] + random.normal() * 0.01,
            facts=lambda where, seed: {"jaccard": fact[where["source"]]},
            axes={"source": names, "method": METHODS},
        )
        verdicts.append(answer("correlation", data, axis="source", fact="jaccard")["verdict"])
    assert verdicts.count("undecided") >= 36


def test_the_interval_of_a_rank_correlation():
    ranks = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}
    swapped = dict(zip("abcdef", (2, 1, 4, 3, 6, 5), strict=True))
    data = table(
        lambda where, seed: float(swapped[where["source"]]),
        facts=lambda where, seed: {"tokens": ranks[where["source"]]},
        axes={"source": tuple("abcdef")},
    )
    found = answer("correlation", data, axis="source", fact="tokens", claim="worse")
    expected = stats.spearmanr(list(ranks.values()), list(swapped.values()))
    half = 1.959964 * math.sqrt((1 + expected.statistic**2 / 2) / 3)
    ends = (math.tanh(math.atanh(expected.statistic) + sign * half) for sign in (-1, 1))
    assert found["estimate"] == pytest.approx(expected.statistic)
    assert (found["low"], found["high"]) == pytest.approx(tuple(ends), abs=1e-6)
    assert found["groups"][0]["n"] == 6


def test_a_slope_too_large_for_per_cent_is_said_as_it_is():
    data = table(lambda where, seed: 2000 * float(where["sparsity"]) + seed / 1e3, metric="nll")
    log = replace(
        data,
        metric="nll",
        logarithms=True,
        rows=[Row(r.labels, r.seed, {"nll": math.exp(r.values["nll"] / 10)}) for r in data.rows],
    )
    assert "nll changes by +200 in log nll per unit" in answer("trend", log, axis="sparsity")["sentence"]


def test_deviations_of_a_task_s_perplexity_are_no_perplexities():
    random = np.random.default_rng(3)
    value = {(source, seed): 2 + random.normal() * 0.1 for source in SOURCES for seed in range(10)}
    first = table(lambda where, seed: value[where["source"], seed])
    other = replace(
        first,
        metric="lambada/ppl",
        rows=[Row(r.labels, r.seed, {"lambada/ppl": r.values["perplexity"]}) for r in first.rows],
    )
    one, two = (
        answer("steadiness", data, axis="source", baseline="web", candidates=["self"]) for data in (first, other)
    )
    assert one["estimate"] == pytest.approx(two["estimate"])
    assert {group["n"] for group in two["groups"]} == {10}


def test_which_of_two_axes_matters_more():
    drawn = noise(0.001)

    def value(where, seed):
        return drawn(where, seed) + 0.02 * SOURCES.index(where["source"]) + 0.3 * METHODS.index(where["method"])

    found = answer("effects", table(value), axis="method", against="source")
    assert found["verdict"] == "supported"
    assert found["estimate"] == pytest.approx(0.3 - 0.04, abs=0.01)
    assert answer("effects", table(value), axis="source", against="method")["verdict"] == "not supported"
    assert found["groups"][0]["labels"] == [2, 3]


def test_metrics_that_are_no_perplexity_are_compared_as_they_are_and_more_may_be_better():
    drawn = noise(0.001)
    data = table(
        lambda where, seed: 0.5 + drawn(where, seed) + 0.1 * (where["source"] == "self"), metric="acc", sign=1.0
    )
    found = answer("difference", data, axis="source", baseline="prose", candidates=["self"])
    assert found["verdict"] == "supported"
    assert found["estimate"] == pytest.approx(0.1, abs=0.01)
    assert found["unit"] == "acc"
    pair = found["groups"][0]["pairs"][0]
    assert pair["difference"] == pytest.approx(pair["a"] - pair["b"])


def test_holm_on_a_known_family():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([]) == []


def test_the_expected_range_of_normal_values():
    drawn = np.random.default_rng(0).normal(size=(20000, 4))
    assert expected_range(2) == pytest.approx(2 / math.sqrt(math.pi))
    assert expected_range(4) == pytest.approx(float(np.ptp(drawn, axis=1).mean()), rel=0.01)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.0, 0.0], [1e-300, 1e-300]])
def test_repeats_that_are_all_the_same(values):
    found = estimate(values)
    assert found.low == found.high == found.mean == values[0]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("difference", {"axis": "sorce", "baseline": "self"}, "no axis 'sorce'; did you mean 'source'"),
        (
            "difference",
            {"axis": "source", "baseline": "slf"},
            "no label of axis 'source' called 'slf'; did you mean 'self'",
        ),
        ("difference", {"axis": "source"}, "needs a baseline, a label of the axis"),
        ("difference", {"axis": "source", "baseline": "self", "candidates": ["self"]}, "not its baseline"),
        ("spread", {"axis": "source"}, "needs along"),
        ("spread", {"axis": "source", "along": "source"}, "two axes"),
        ("effects", {"axis": "source", "against": "source"}, "two axes"),
        ("trend", {"axis": "source"}, "labels are numbers"),
        ("correlation", {"axis": "source"}, "needs a fact"),
        ("correlation", {"axis": "method", "fact": "tokens"}, "at least 5 labels"),
        ("difference", {"axes": "source"}, "no setting 'axes'; did you mean 'axis'"),
        ("difference", {"axis": "source", "baseline": 3}, "baseline: .*found 3"),
        ("trend", {"axis": "sparsity", "scale": "log"}, "scale"),
    ],
)
def test_comparisons_that_cannot_be_made(kind, settings, message):
    with pytest.raises(RecipeError, match=message):
        answer(kind, table(lambda where, seed: 1.0), **settings)


def test_a_kind_that_there_is_not():
    with pytest.raises(UnknownNameError, match="no comparison named 'diference'; did you mean 'difference'"):
        make(COMPARISONS, "diference", {})
