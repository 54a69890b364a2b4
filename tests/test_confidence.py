"""Confidence, retention, and the flat names of scores: by hand-made numbers."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UsageError
from secateur.evaluation.capabilities import capability_of, retention
from secateur.evaluation.confidence import confidence_of, reliability
from secateur.evaluation.metrics import better, flatten
from secateur.evaluation.task import choices_score
from secateur.reports import model_card


def test_the_error_is_the_mean_gap_of_the_bins_weighted_by_answers():
    found = reliability([0.95, 0.95, 0.95, 0.95, 0.55, 0.55], [True, True, True, False, True, True], 10)
    assert found.ece == pytest.approx((4 * abs(0.75 - 0.95) + 2 * abs(1 - 0.55)) / 6)
    filled = [entry for entry in found.bins if entry.count]
    assert [(entry.count, entry.accuracy) for entry in filled] == [(2, 1.0), (4, 0.75)]
    assert filled[0].confidence == pytest.approx(0.55)
    assert [len(found.bins), found.bins[0].accuracy, found.accuracy] == [10, None, pytest.approx(5 / 6)]


def test_edges_belong_to_the_bin_below():
    found = reliability([0.5, 0.5000001, 1.0, 0.0], [True] * 4, 2)
    assert [entry.count for entry in found.bins] == [2, 2]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(1, 20))
def test_every_answer_is_in_a_bin_and_the_error_is_bounded(answers, bins):
    sure, right = [value for value, _ in answers], [value for _, value in answers]
    found = reliability(sure, right, bins)
    assert sum(entry.count for entry in found.bins) == len(answers)
    assert abs(found.accuracy - found.confidence) - 1e-9 <= found.ece <= 1
    assert reliability(sure, right, 1).ece == pytest.approx(abs(found.accuracy - found.confidence))


def test_no_answers_is_an_error():
    with pytest.raises(UsageError, match="needs answers"):
        reliability([], [], 10)


def test_confidence_is_the_largest_softmax_share_however_unlikely_all_are():
    assert confidence_of([math.log(3), 0.0]) == pytest.approx(0.75)
    assert confidence_of([-2000.0, -2000.0 - math.log(4)]) == pytest.approx(0.8)


def test_choices_are_scored_plainly_and_per_character():
    rows, lengths = [[-3.0, -4.0], [-1.0, -6.0]], [[1, 4], [5, 5]]
    found = choices_score(rows, lengths, [1, 0], ["a", "b"], {})
    assert (found.metrics["acc"], found.metrics["acc_norm"], found.chance) == (0.5, 1.0, 0.5)
    assert [right for _, right in found.answers] == [False, True]


def test_retention_by_task_and_capability_knows_chance():
    own = {
        "boolq": {"acc": 0.6, "chance": 0.5},
        "piqa": {"acc": 0.5, "acc_norm": 0.7, "chance": 0.5},
        "alpaca": {"ppl": 9},
    }
    dense = {"boolq": {"acc": 0.8}, "piqa": {"acc": 0.6, "acc_norm": 0.9}, "alpaca": {"ppl": 5}}
    found = retention(own, dense)
    assert found["tasks"]["boolq"]["share"] == pytest.approx(0.75)
    assert found["tasks"]["boolq"]["share_above_chance"] == pytest.approx(1 / 3)
    assert found["capabilities"]["commonsense"]["share"] == pytest.approx(7 / 9)
    assert found["overall"]["share"] == pytest.approx(0.65 / 0.85)
    assert "alpaca" not in found["tasks"]
    nothing = retention({"boolq": {"acc": 0.5, "chance": 0.5}}, {"boolq": {"acc": 0.4}})
    assert nothing["overall"]["share_above_chance"] is None
    assert retention({"alpaca": {"ppl": 9}}, {}) == {}
    assert [capability_of(name) for name in ("mmlu_anatomy", "mine")] == ["general", "other"]


SCORES = {
    "perplexity": {"value": math.e**2},
    "fidelity": {"kl": 0.1, "js": 0.02, "top1": 0.9, "tokens": 5},
    "tasks": {
        "piqa": {
            "acc": 0.5,
            "acc_norm": 0.7,
            "chance": 0.5,
            "ece": 0.1,
            "fidelity": {"kl": 1.0, "js": 0.2, "top1": 0.8},
        },
        "boolq": {"acc": 0.6, "chance": 0.5, "ece": 0.3},
        "alpaca": {"ppl": 9.0, "items": 4},
    },
    "generation": {"tokens": 20.0, "ended": 0.5, "repetition": 0.25, "compression": 2.0, "dense": {"tokens": 30.0}},
}


def test_scores_become_flat_names_that_know_their_direction():
    scores = SCORES | {"retention": retention(SCORES["tasks"], {"piqa": {"acc": 0.9}, "boolq": {"acc": 0.6}})}
    found = flatten(scores)
    assert found["loss"] == pytest.approx(2)
    assert (found["kl"], found["piqa/kl"], found["piqa/acc"], found["alpaca/ppl"]) == (0.1, 1.0, 0.5, 9.0)
    assert found["mean-accuracy"] == pytest.approx(0.65)  # acc_norm of piqa, acc of boolq
    assert found["mean-ece"] == pytest.approx(0.2)
    assert found["retention"] == pytest.approx(0.65 / 0.75)
    assert found["retention/general"] == pytest.approx(1)
    assert found["generation/repetition"] == 0.25
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    neither = {"generation/tokens", "generation/ended"}
    assert {better(name) for name in found.keys() - neither} == {"lower", "higher"}
    assert [better(name) for name in ("kl", "piqa/acc", "piqa/ece", "retention/code")] == [
        "lower",
        "higher",
        "lower",
        "higher",
    ]


def test_what_was_not_measured_is_not_there():
    assert flatten({"perplexity": {"value": 3.0}}).keys() == {"perplexity", "loss"}
    assert flatten({}) == {}


def test_unknown_metrics_are_refused_with_a_near_name():
    with pytest.raises(UsageError, match="did you mean 'perplexity'"):
        better("perplexty")
    with pytest.raises(UsageError, match="did you mean 'boolq/acc_norm'"):
        better("boolq/acc_nrm")
    with pytest.raises(UsageError, match="neither less nor more is better"):
        better("generation/tokens")


def test_names_need_no_torch():
    code = "import sys, secateur.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_model_card_lists_tasks_beside_dense_and_chance():
    perplexity = {"protocol": "concat-32", "tokens": 320, "value": 7.0}
    own = {"acc": 0.5, "acc_stderr": 0.05, "chance": 0.25}
    tasks = {"one": own, "two": {"acc": 0.4, "acc_norm": 0.45, "acc_stderr": 0.05}, "alpaca": {"ppl": 9.0}}
    dense = {"perplexity": perplexity, "tasks": {"one": {"acc": 0.75}}}
    lines = model_card._scores({"perplexity": perplexity, "tasks": tasks}, dense)
    rows = [line for line in lines if line.startswith(("| one", "| two", "| alpaca"))]
    assert rows == ["| one | 0.500 ± 0.050 | 0.750 | 0.250 |", "| two | 0.450 |  |  |"]
