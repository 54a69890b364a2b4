"""Selections: exact counts, the same choice for the same seed, and each true to its definition."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ScriptedContext, tiny_tokenizer
from secateur.calibration.sample import Sample
from secateur.calibration.selection import SELECTIONS
from secateur.calibration.selection.coverage import Coverage, types_of
from secateur.calibration.selection.diversity import Diversity
from secateur.calibration.selection.influence import Influence
from secateur.calibration.selection.k_means import KMeans
from secateur.calibration.selection.lowest_perplexity import LowestPerplexity
from secateur.calibration.selection.min_k import MinK
from secateur.errors import CalibrationError, RecipeError, UsageError
from secateur.models.loading import load_tokenizer
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import make_selection
from secateur.pipeline.context import ModelContext
from secateur.pipeline.recipe import CalibrationSpec, Recipe
from secateur.pipeline.reporter import Reporter

TOKENIZER = tiny_tokenizer()
LONG = " ".join(f"word {number} of a target text" for number in range(60))


def pool(count: int = 12, length: int = 10, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [
        Sample(tuple(rng.randrange(3, 300) for _ in range(length)), mean_logprob=-rng.random() * 5)
        for _ in range(count)
    ]


def scripted(**more) -> ScriptedContext:
    """A context in which everything that can be asked has an answer that depends on the sample alone."""

    def rows(samples, dimensions):
        found = [np.random.default_rng(sum(sample.token_ids)).normal(size=dimensions) for sample in samples]
        return np.array(found, dtype=np.float32)

    answers = {
        "min_k": lambda sample, share, plus: float(sum(sample.token_ids[:3])),
        "activations": rows,
        "gradients": lambda samples, dimensions, adam: rows(samples, dimensions),
        "sources": {"task": [LONG]},
    }
    return ScriptedContext(TOKENIZER, **(answers | more))


def selection_of(named) -> object:
    return make_selection(Recipe(calibration=CalibrationSpec.model_validate({"selection": named})))


NAMED = ["random", "lowest-perplexity", "min-k", "coverage", "diversity", "k-means"]
NAMED += [{"name": "influence", "targets": ["task"], "target_samples": 3, "dimensions": 16}]
NAMED += [{"name": "diversity", "balance": 0.5}, {"name": "min-k", "side": "low"}]


@pytest.mark.parametrize("named", NAMED, ids=str)
@pytest.mark.parametrize("count", [1, 5, 12])
def test_the_count_is_exact_and_the_choice_repeatable(named, count):
    samples = pool()
    choice = selection_of(named).choose(samples, count, scripted())
    assert len(choice.indices) == count == len(set(choice.indices))
    assert set(choice.indices) <= set(range(12))
    assert selection_of(named).choose(samples, count, scripted()) == choice
    if named != "random":
        assert len(choice.values) == 12
        assert all(math.isfinite(value) for value in choice.values)


def test_every_selection_is_tried_and_takes_its_pool_from_the_recipe():
    names = {named if isinstance(named, str) else named["name"] for named in NAMED}
    assert names == set(SELECTIONS.entries()) - {"matched"}  # needs another set; not this file's
    for name, entry in SELECTIONS.entries().items():
        assert SELECTIONS.load(name).__doc__.startswith(entry.summary.rstrip("."))
    for name in names:
        targets = {"targets": ["task"]} if name == "influence" else {}
        assert selection_of({"name": name, **targets}).pool_of(7) == (7 if name == "random" else 28)
        assert selection_of({"name": name, "pool": 2.5, **targets}).pool_of(3) == 8
        with pytest.raises(UsageError, match="pool is a number of at least 1"):
            selection_of({"name": name, "pool": 0.5, **targets})


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("influence", "needs to be told for which task"),
        ({"name": "influence", "targets": ["task"], "target_samples": 0}, "at least 1; found 0"),
        ({"name": "influence", "targets": "task"}, "influence.*targets"),
        ({"name": "min-k", "side": "middle"}, "min-k.*side.*'high' or 'low'"),
        ({"name": "min-k", "share": 0.0}, "above 0 and at most 1.*found 0"),
        ({"name": "k-means", "dimensions": 0}, "at least 1; found 0 and 10"),
        ({"name": "diversity", "ngram": 0}, "at least 1; found 0"),
        ({"name": "diversity", "balance": math.inf}, "finite number; found inf"),
        ({"name": "coverage", "pol": 2.0}, "did you mean 'pool'"),
        ({"name": "coverage", "pool": "4"}, "coverage.*pool"),
        ("covrage", "did you mean 'coverage'"),
    ],
    ids=str,
)
def test_what_a_recipe_gets_wrong_is_said(named, message):
    with pytest.raises((RecipeError, UsageError), match=message):
        selection_of(named)


def test_lowest_perplexity_takes_the_likeliest_of_equal_ones_the_earlier():
    samples = [Sample((number,), mean_logprob=value) for number, value in enumerate([-3.0, -1.0, -2.0, -1.0])]
    choice = LowestPerplexity().choose(samples, 3, scripted())
    assert choice.indices == [1, 3, 2]
    assert choice.values == pytest.approx([math.exp(3), math.e, math.exp(2), math.e])
    other = scripted(scores={"other": lambda sample: -float(sample.token_ids[0])})
    assert LowestPerplexity(model="other").choose(samples, 2, other).indices == [0, 1]


def test_what_cannot_be_ranked_is_an_error():
    samples = [Sample((1, 2), mean_logprob=-1.0), Sample((1, 3), mean_logprob=float("nan"))]
    with pytest.raises(CalibrationError, match="1 of 2 samples have no finite perplexity"):
        LowestPerplexity().choose(samples, 1, scripted())


def test_min_k_takes_its_side_and_asks_for_its_share():
    samples, asked = pool(6), []

    def answer(sample, share, plus):
        asked.append((share, plus))
        return float(samples.index(sample))

    assert MinK(share=0.2, plus=False).choose(samples, 2, scripted(min_k=answer)).indices == [5, 4]
    assert set(asked) == {(0.2, False)}
    low = MinK(side="low").choose(samples, 2, scripted(min_k=answer))
    assert low.indices == [0, 1]
    assert low.values == [0, 1, 2, 3, 4, 5]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(3, 20), min_size=1, max_size=8), min_size=3, max_size=8),
    st.integers(1, 8),
    st.booleans(),
)
def test_coverage_is_the_plain_greedy(token_lists, count, with_blank):
    samples = [Sample(tuple(ids)) for ids in token_lists] + [Sample((0, 1))] * with_blank
    count = min(count, len(samples))
    types = types_of(samples, scripted())
    chosen, covered, values = [], set(), {}
    while len(chosen) < count:
        left = [index for index in range(len(samples)) if index not in chosen]
        gain = {index: len(types[index] - covered) for index in left}
        if not any(gain.values()):
            covered = set()
            gain = {index: len(types[index]) for index in left}
        best = max(left, key=lambda index: (gain[index], -index))
        chosen.append(best)
        values[best] = gain[best]
        covered |= types[best]
    choice = Coverage().choose(samples, count, scripted())
    assert choice.indices == chosen
    assert all(choice.values[index] == value for index, value in values.items())


def test_coverage_of_two_is_near_the_best_pair():
    samples = pool(9, 30)
    types = types_of(samples, scripted())
    chosen = Coverage().choose(samples, 2, scripted()).indices
    best = max(len(types[one] | types[other]) for one, other in itertools.combinations(range(9), 2))
    assert len(types[chosen[0]] | types[chosen[1]]) >= (1 - 1 / math.e) * best


def test_types_are_words_in_lower_case_without_marks():
    def ids(text):
        return TOKENIZER.encode(text, add_special_tokens=False)

    same = [Sample(tuple(ids(text))) for text in ("X", " x", "x ", "x")]
    assert types_of(same, scripted()) == [{"x"}] * 4
    assert types_of([Sample((0, 1, 2))], scripted()) == [set()]
    accents = [Sample(tuple(ids(text))) for text in ("é", "É", "ã")]
    assert len(set.union(*types_of(accents, scripted()))) == len({token for one in accents for token in one.token_ids})


def test_diversity_is_the_plain_greedy():
    rng = random.Random(1)
    samples = [
        Sample(tuple(rng.randrange(3, 6) for _ in range(rng.randrange(2, 30))), mean_logprob=-rng.random())
        for _ in range(15)
    ]
    for size, balance in ((3, 0.0), (4, 0.3), (2, -0.2)):
        grams = [
            {one.token_ids[at : at + size] for at in range(max(1, len(one.token_ids) - size + 1))} for one in samples
        ]
        ranks = sorted(range(15), key=lambda index: (-samples[index].mean_logprob, index))
        chosen, seen, values = [], set(), [0.0] * 15
        while len(chosen) < 9:
            for index in set(range(15)) - set(chosen):
                share = len(grams[index] & seen) / len(grams[index])
                values[index] = share + balance * ranks.index(index) / 14
            chosen.append(min(set(range(15)) - set(chosen), key=lambda index: (values[index], index)))
            seen |= grams[chosen[-1]]
        choice = Diversity(ngram=size, balance=balance).choose(samples, 9, scripted())
        assert choice.indices == chosen
        assert [choice.values[index] for index in chosen] == pytest.approx([values[index] for index in chosen])


def test_diversity_avoids_what_repeats_and_asks_for_no_model():
    repeated = tuple(range(10, 30))
    samples = [
        Sample(repeated),
        Sample(repeated),
        Sample(tuple(range(50, 70))),
        Sample((*repeated[:10], *range(90, 100))),
    ]
    choice = Diversity().choose(samples, 3, ScriptedContext(TOKENIZER))
    assert choice.indices == [0, 2, 3]
    assert choice.values[1] == 1.0
    assert choice.values[3] == pytest.approx(7 / 17)


def test_k_means_takes_one_of_each_planted_cluster():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 8)) * 50
    groups = [number % 6 for number in range(42)]
    points = centres[groups] + rng.normal(size=(42, 8))
    samples = [Sample((3 + number,)) for number in range(42)]
    context = scripted(activations=lambda asked, dimensions: points[:, :dimensions])
    choice = KMeans(dimensions=8).choose(samples, 6, context)
    assert sorted(groups[index] for index in choice.indices) == list(range(6))
    for index in choice.indices:
        mine = points[[number for number in range(42) if groups[number] == groups[index]]]
        nearest = mine[np.linalg.norm(mine - mine.mean(axis=0), axis=1).argmin()]
        assert np.array_equal(points[index], nearest)


def test_k_means_of_equal_samples_takes_the_different_ones_first_and_then_others():
    points = np.array([[0.0], [0.0], [0.0], [5.0], [5.0], [9.0]])
    context = scripted(activations=lambda asked, dimensions: points)
    samples = [Sample((number,)) for number in range(6)]
    assert sorted(points[KMeans().choose(samples, 3, context).indices, 0]) == [0, 5, 9]
    assert sorted(KMeans().choose(samples, 2, context).indices) in ([0, 3], [0, 5])
    choice = KMeans().choose(samples, 5, context)
    assert len(set(choice.indices)) == 5
    assert {0, 5, 9} == set(points[choice.indices, 0])


def test_influence_is_the_mean_over_a_target_and_the_largest_over_targets():
    samples = [Sample((3, 50 + number, 60)) for number in range(4)]
    steps = np.array([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0], [-1.0, 0.0]])
    asked = []

    def gradients(given, dimensions, adam):
        asked.append((adam, [len(sample.token_ids) for sample in given]))
        if adam:
            return steps
        return np.array([[1.0, 0.0], [1.0, 0.0]]) if len(asked) == 2 else np.array([[0.0, 1.0], [1.0, 0.0]])

    choice = Influence(targets=["task", "other"], target_samples=2).choose(
        samples, 2, scripted(gradients=gradients, sources={"task": [LONG], "other": [LONG]})
    )
    assert asked == [(True, [3] * 4), (False, [3, 3]), (False, [3, 3])]
    half = 1 / math.sqrt(2)
    assert choice.values == pytest.approx([1.0, 0.5, half, -0.5])
    assert choice.indices == [0, 2]


def test_influence_targets_start_as_the_pool_does_and_say_when_they_are_too_short():
    seen = []

    def gradients(given, dimensions, adam):
        seen.append(given)
        return np.ones((len(given), 2))

    begun = [Sample((0, *range(10 + number, 15 + number))) for number in range(3)]
    Influence(targets=["task"], target_samples=4).choose(begun, 1, scripted(gradients=gradients))
    assert all(sample.token_ids[0] == 0 and len(sample.token_ids) == 6 for sample in seen[1])
    plain = [Sample(sample.token_ids[1:]) for sample in begun]
    Influence(targets=["task"], target_samples=4).choose(plain, 1, scripted(gradients=gradients))
    assert all(0 not in sample.token_ids and len(sample.token_ids) == 5 for sample in seen[3])
    with pytest.raises(
        CalibrationError, match=r"cannot draw its target_samples: 4 samples of 6 tokens were asked of 'task'"
    ):
        Influence(targets=["task"], target_samples=4).choose(begun, 1, scripted(sources={"task": ["too short"]}))


def model_context(llama, **calibration) -> ModelContext:
    recipe = Recipe(model=str(llama), device="cpu", calibration=CalibrationSpec(**calibration))
    return ModelContext(recipe, llama, load_tokenizer(llama))


def test_influence_finds_the_target_s_own_text_among_random_tokens(llama, tmp_path):
    context = model_context(llama)
    text = "the quick brown fox jumps over the lazy dog; " * 60
    (tmp_path / "target.txt").write_text(text)
    own = load_tokenizer(llama).encode(text, add_special_tokens=False)
    alike = [Sample((0, *own[number * 29 : number * 29 + 23])) for number in range(8)]
    others = [Sample((0, *sample.token_ids)) for sample in pool(16, 23)]
    samples = [*others[:8], *alike, *others[8:]]
    selection = Influence(targets=[str(tmp_path / "target.txt")], target_samples=6, dimensions=512)
    choice = selection.choose(samples, 8, context)
    assert sorted(choice.indices) == list(range(8, 16))
    away = [[-value for value in row] for row in context.gradients(samples, 512, True)]
    context.gradients = lambda given, dimensions, adam, kept=context.gradients: (
        np.array(away) if adam else kept(given, dimensions, adam)
    )
    assert not set(selection.choose(samples, 8, context).indices) & set(range(8, 16))


@pytest.mark.parametrize("name", ["min-k", "k-means", "lowest-perplexity"])
def test_selections_that_ask_the_model_choose_by_it(llama, name):
    context, samples = model_context(llama), [Sample(sample.token_ids) for sample in pool()]
    choice = selection_of(name).choose(samples, 4, context)
    assert len(set(choice.indices)) == 4
    assert len(set(choice.values)) > 4


def recipe_for(llama, text_file, selection, **more) -> Recipe:
    spec = {"source": str(text_file), "samples": 3, "length": 16, "selection": selection} | more
    return Recipe(model=str(llama), device="cpu", calibration=CalibrationSpec.model_validate(spec))


def test_a_calibration_stage_chooses_and_keeps_what_it_did_not_choose(llama, text_file, tmp_path):
    stage = plan_calibration(recipe_for(llama, text_file, "coverage"))
    folder = stage.run(tmp_path / "set", Reporter())
    chosen = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    unchosen = [json.loads(line) for line in (folder / "unchosen.jsonl").read_text().splitlines()]
    assert (len(chosen), len(unchosen)) == (3, 9)
    assert all(entry["reason"] == "not chosen" and entry["value"] >= 0 for entry in unchosen)
    pooled = [Sample(tuple(entry["token_ids"])) for entry in [*chosen, *unchosen]]
    types = types_of(pooled, stage_context(stage))
    covered = set.union(*types[:3])
    assert len(types[0]) == max(map(len, types))
    assert [entry["value"] for entry in unchosen] == [len(own - covered) for own in types[3:]]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["samples"] == 3
    assert "select" in manifest["phases"]
    plain = plan_calibration(recipe_for(llama, text_file, "random"))
    assert plain.folder(tmp_path) != stage.folder(tmp_path)
    assert not (plain.run(tmp_path / "plain", Reporter()) / "unchosen.jsonl").exists()


def stage_context(stage) -> ModelContext:
    return ModelContext(stage.recipe, stage.model.folder, stage.tokenizer)


def test_generated_samples_are_chosen_with_their_perplexities(llama, text_file, tmp_path):
    generation = {"prefixes": str(text_file), "batch_size": 8}
    recipe = recipe_for(
        llama, text_file, {"name": "lowest-perplexity", "pool": 3.0}, source="self", filters=[], generation=generation
    )
    folder = plan_calibration(recipe).run(tmp_path / "set", Reporter())
    chosen = [json.loads(line)["mean_logprob"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    unchosen = [json.loads(line)["value"] for line in (folder / "unchosen.jsonl").read_text().splitlines()]
    assert (len(chosen), len(unchosen)) == (3, 6)
    assert max(math.exp(-value) for value in chosen) <= min(unchosen)
