"""What is recommended, how sure it is, and what that stands on."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from secateur import api
from secateur.cli.main import main
from secateur.diagnosis import families
from secateur.diagnosis.predictor import Predictor, Term, evidence
from secateur.errors import UnknownNameError, UsageError
from secateur.pipeline import recommend as recommending
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.recommend import plan_recommendation

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
predict_evidence = pytest.importorskip("predict_evidence")
SMALL = ["calibration.samples=6", "calibration.length=24"]


def rows(seeds: int = 3, sets: int = 8):
    """Sets whose loss is decided by their effective rank and by nothing else."""
    found = []
    for seed in range(seeds):
        draw = random.Random(seed)
        for number in range(sets):
            rank = 10.0 + 5 * number + draw.random()
            diagnosis = {"effective_rank": rank, "perplexity": draw.uniform(2, 9), "unigram_js": draw.random()}
            found.append((f"set {number}", seed, diagnosis, [1 / rank, 2 / rank]))
    return found


def test_the_evidence_finds_the_diagnosis_that_decides():
    found = predict_evidence.predictor(rows(), reference=False)
    assert [term.name for term in found.terms] == ["effective_rank"]
    assert found.terms[0].weight > 0
    assert found.terms[0].rho == pytest.approx(-1)
    assert found.right == 1
    assert found.likelihood > math.log(0.9)
    assert found.pairs == 3 * 2 * math.comb(8, 2)


def test_what_has_nothing_to_do_with_the_loss_is_right_about_half_the_time():
    draw = random.Random(1)
    noise = [(name, seed, diagnosis, [draw.random(), draw.random()]) for name, seed, diagnosis, _ in rows(6)]
    found = predict_evidence.predictor(noise, reference=True)
    assert 0.3 < found.right < 0.7
    assert predict_evidence.ceiling(noise) < 0.7 < predict_evidence.ceiling(rows())


def test_the_packaged_evidence_is_what_the_committed_study_says():
    study = Path(__file__).parents[1] / "docs/results/predict"
    committed, known = predict_evidence.rows_of(study), evidence()
    assert len(committed) == known.sets * known.seeds
    assert known.ceiling == pytest.approx(predict_evidence.ceiling(committed))
    quantities = {name for family in families().values() for name in family.quantities}
    for name, predictor in known.predictors.items():
        assert [term.name for term in predictor.terms] == predict_evidence.chosen(committed, name == "reference")
        assert {term.name for term in predictor.terms} <= quantities
        weights = predict_evidence.fit(predict_evidence.pairs_of(committed), [term.name for term in predictor.terms])
        assert [term.weight for term in predictor.terms] == pytest.approx(weights, rel=1e-3)
        assert 0.5 < predictor.right < known.ceiling


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def test_candidates_are_ranked_by_the_predictor(llama, text_file, store):
    recipe = load_recipe(None, SMALL, {"model": str(llama)})
    sources = ["random-tokens", str(text_file), "self"]
    found = api.recommend(recipe, sources, reference=str(text_file), draws=2, store=store)
    assert {one.source for one in found.candidates} == set(sources)
    scores = [one.score for one in found.candidates]
    assert scores == sorted(scores, reverse=True)
    assert math.fsum(one.best for one in found.candidates) == pytest.approx(1)
    first = found.candidates[0]
    assert first.beaten_by_first == 0.5
    predictor = evidence().predictor(reference=True)
    for one in found.candidates:
        assert len(one.sets) == 2
        assert one.diagnosis.keys() == one.why.keys() == {term.name for term in predictor.terms}
        odds = first.score - one.score
        assert one.beaten_by_first == pytest.approx(1 / (1 + math.exp(-odds)))
        assert math.fsum(one.why.values()) == pytest.approx(one.score - sum(scores) / 3)
        assert (one.source in found.tied) == (one is not first and one.beaten_by_first < recommending.TOLD_APART)
    js = {one.source: one.diagnosis["unigram_js"] for one in found.candidates}
    assert js[str(text_file)] == min(js.values()), "the reference is like itself"


def test_finished_sets_are_candidates_and_are_cut_to_the_size_of_the_others(llama, text_file, store):
    more = ["calibration.samples=9", "calibration.length=30", f"calibration.source={text_file}"]
    made = api.generate(load_recipe(None, more, {"model": str(llama)}), store=store).folder
    recipe = load_recipe(None, SMALL, {"model": str(llama)})
    plan = plan_recommendation(recipe, [str(made), "random-tokens"], draws=1)
    samples = plan._like_the_others(made)
    assert [len(sample.token_ids) for sample in samples] == [24] * 6
    found = plan.run(store, recommending.Reporter())
    assert found.reference is None
    assert [list(one.diagnosis) for one in found.candidates] == [["effective_rank"]] * 2
    assert found.candidates[0].spread is None
    assert plan.run(store, recommending.Reporter()) == found, "read back"
    large = load_recipe(None, ["calibration.samples=10", "calibration.length=30"], {"model": str(llama)})
    with pytest.raises(UsageError, match="has 9 samples of 30 tokens or more, and candidates are compared by 10 each"):
        plan_recommendation(large, [str(made), "random-tokens"])


def test_what_cannot_be_compared_is_said(llama, monkeypatch):
    recipe = load_recipe(None, SMALL, {"model": str(llama)})
    with pytest.raises(UsageError, match="two or more different sources; found self alone"):
        plan_recommendation(recipe, ["self"])
    with pytest.raises(UsageError, match="found random-tokens more than once"):
        plan_recommendation(recipe, ["random-tokens", "self", "random-tokens"])
    with pytest.raises(UsageError, match="at least one set of each source; found 0"):
        plan_recommendation(recipe, ["random-tokens", "self"], draws=0)
    with pytest.raises(UnknownNameError, match="self-calibration"):
        plan_recommendation(recipe, ["self:self-calibrations", "self"])
    known = evidence()
    monkeypatch.setattr(recommending, "evidence", lambda: replace(known, predictors={}))
    with pytest.raises(UsageError, match="name a text like what the model must stay good at with --reference"):
        plan_recommendation(recipe, ["random-tokens", "prose"])


def test_a_predictor_takes_logarithms_where_it_says_so():
    terms = [Term("effective_rank", 2.0, True, -0.5, -0.6, -0.4), Term("english", -1.0, False, 0.1, 0.0, 0.2)]
    one = Predictor(terms, 0.7, -0.6, 10)
    assert one.score({"effective_rank": math.e, "english": 0.25}) == pytest.approx(1.75)


def test_the_command_says_what_to_take_how_sure_it_is_and_why(llama, text_file, store, capsys):
    settings = [part for one in SMALL for part in ("--set", one)]
    sources = ["--source", "random-tokens", "--source", str(text_file)]
    common = [*settings, *sources, "--store", str(store), "-q", "--draws", "1"]
    assert main(["recommend", str(llama), *common]) == 0
    printed = capsys.readouterr().out
    for words in ("is the best", "effective rank", "Take ", "63% of pairs", "was not tried", "With --reference"):
        assert words in printed
    assert main(["recommend", str(llama), *common, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["evidence"]["sets"] == 12
    assert len(found["candidates"]) == 2
    assert main(["recommend", str(llama), *common, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"candidates   random-tokens, {text_file}\n" in printed
    assert "Nothing was run." in printed
    assert main(["recommend", str(llama), *common, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["stage"] == "recommendation"
    assert main(["recommend", str(llama), "--source", "self", *settings]) == 2
