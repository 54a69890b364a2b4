"""Mixture weights: the fit against planted laws, its best point against an optimiser, trials that are run once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import t as student

from secateur import find_mixture
from secateur.calibration.power_law import best_amounts, bootstrap_shares, fit
from secateur.cli.main import main
from secateur.errors import NumericsError, StoreError, UsageError
from secateur.evaluation.perplexity import perplexity
from secateur.journal import Journal
from secateur.models.loading import load_model, quiet_transformers
from secateur.pipeline import mixing_trials
from secateur.pipeline.mixing import plan_mixture
from secateur.pipeline.mixing_plan import Search, Trial, make_trials, trial_recipe
from secateur.pipeline.mixing_trials import TrialRunner, only_one
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter


def planted(beta, gamma, seeds=3, base=64, noise=0.0, draw=0):
    """Amounts, losses and seeds of trials that follow a law, each seed at its own level."""
    rng = np.random.default_rng(draw)
    trials = make_trials(len(beta), base, 3.0, range(seeds))
    amounts = np.array([trial.amounts for trial in trials], dtype=float)
    names = np.array([trial.seed for trial in trials])
    levels = 3 + 0.3 * rng.standard_normal(seeds)
    losses = levels[names] + (amounts + 1) ** -gamma @ np.array(beta) + noise * rng.standard_normal(len(trials))
    return amounts, losses, names


@pytest.mark.parametrize("gamma", [0.08, 0.5, 1.7])
def test_the_fit_finds_a_planted_law(gamma):
    beta = [2.0, 0.7, 0.3, 0.0]
    amounts, losses, seeds = planted(beta, gamma)
    law = fit(amounts, losses, seeds)
    assert law.gamma == pytest.approx(gamma, rel=1e-2)
    np.testing.assert_allclose(law.beta, beta, rtol=0.06, atol=0.02)
    for tried, loss in zip(amounts[seeds == 0], losses[seeds == 0], strict=True):
        assert law.loss(tried) == pytest.approx(loss - losses[0] + law.loss(amounts[0]), abs=1e-4)
    assert law.freedom == 27 - 3 - 4 - 1
    assert law.residual < 1e-4


def test_the_fit_bears_noise_and_says_how_much():
    amounts, losses, seeds = planted([2.0, 0.7, 0.3, 0.0], 0.5, seeds=6, noise=0.004)
    law = fit(amounts, losses, seeds)
    assert law.residual == pytest.approx(0.004, rel=0.4)
    assert law.gamma == pytest.approx(0.5, abs=0.1)
    truth = best_amounts([2.0, 0.7, 0.3, 0.0], 0.5, 128) / 128
    np.testing.assert_allclose(best_amounts(law.beta, law.gamma, 128) / 128, truth, atol=0.05)
    gain, error = law.gain([32] * 4, best_amounts(law.beta, law.gamma, 128))
    assert gain > student.ppf(0.975, law.freedom) * error > 0


def test_the_error_of_the_gain_is_that_of_repeated_searches():
    beta, found = [2.0, 0.7, 0.3], np.array([80.0, 30.0, 18.0])
    laws = [fit(*planted(beta, 0.5, noise=0.003, draw=draw)) for draw in range(60)]
    gains, errors = zip(*(law.gain([128 / 3] * 3, found) for law in laws), strict=True)
    assert np.std(gains) == pytest.approx(np.mean(errors), rel=0.3)


def test_sources_that_are_alike_are_seldom_told_apart():
    better = 0
    for draw in range(40):
        amounts, losses, seeds = planted([1.0] * 3, 0.5, noise=0.01, draw=draw)
        law = fit(amounts, losses, seeds)
        gain, error = law.gain([20] * 3, best_amounts(law.beta, law.gamma, 60))
        better += gain > student.ppf(0.975, law.freedom) * error
    assert better <= 4


@settings(max_examples=60, deadline=None)
@given(
    beta=st.lists(st.floats(0, 10), min_size=2, max_size=5).filter(lambda beta: max(beta) > 1e-3),
    gamma=st.floats(0.05, 2),
    total=st.integers(2, 500),
)
def test_the_best_amounts_are_at_least_those_of_an_optimiser(beta, gamma, total):
    strength = np.array(beta) / max(beta)
    found = best_amounts(beta, gamma, total)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(total)

    def loss(shares):
        return strength @ (np.maximum(shares, 0) * total + 1) ** -gamma

    equal = np.full(len(beta), 1 / len(beta))
    constraint = {"type": "eq", "fun": lambda shares: shares.sum() - 1}
    other = minimize(
        loss, equal, method="SLSQP", bounds=[(0, 1)] * len(beta), constraints=[constraint], options={"ftol": 1e-12}
    )
    assert loss(found / total) <= loss(np.maximum(other.x, 0) / np.maximum(other.x, 0).sum()) + 1e-9


def test_the_best_amounts_where_bounds_bind():
    constraint = {"type": "eq", "fun": lambda n: n.sum() - 10}
    beta = np.array([5.0, 1.0, 0.02, 0.0])
    other = minimize(
        lambda n: beta @ (n + 1) ** -0.7,
        [2.5] * 4,
        method="SLSQP",
        bounds=[(0, 10)] * 4,
        constraints=[constraint],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    found = best_amounts(beta, 0.7, 10)
    np.testing.assert_allclose(found, other.x, atol=2e-3)
    assert found[2] == found[3] == 0 < found[1] < found[0]


def test_sources_that_are_the_same_get_the_same():
    amounts, losses, seeds = planted([0.8, 0.8, 0.8], 0.4, base=60)
    law = fit(amounts, losses, seeds)
    np.testing.assert_allclose(best_amounts(law.beta, law.gamma, 100), [100 / 3] * 3, rtol=1e-5)
    np.testing.assert_allclose(best_amounts([0.0, 0.0], 1.0, 7), [3.5, 3.5])


def test_the_interval_is_over_seeds():
    amounts, losses, seeds = planted([2.0, 0.5], 0.5, seeds=4, noise=0.01)
    low, high = bootstrap_shares(amounts, losses, seeds, 64)
    law = fit(amounts, losses, seeds)
    share = best_amounts(law.beta, law.gamma, 64) / 64
    assert (low <= share).all()
    assert (share <= high).all()
    assert (high - low > 0).all()
    assert bootstrap_shares(amounts[:5], losses[:5], seeds[:5], 64) is None


def test_the_trials_change_one_source_at_a_time():
    trials = make_trials(3, 10, 3.0, [7, 8])
    assert trials[0] == Trial((4, 3, 3), 7)
    assert len(trials) == 14
    kinds = {trial.amounts for trial in trials}
    assert kinds == {(4, 3, 3), (12, 3, 3), (1, 3, 3), (4, 9, 3), (4, 1, 3), (4, 3, 9), (4, 3, 1)}
    assert [trial.amounts for trial in make_trials(2, 2, 3.0, [0])] == [(1, 1), (3, 1), (1, 3)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two files of calibration text and one to validate on."""
    folder = tmp_path_factory.mktemp("sources")
    quiet_transformers()
    rng = np.random.default_rng(0)
    for number, name in enumerate(["one", "two", "held"]):
        texts = ["".join(chr(97 + (number * 5 + k) % 26) for k in rng.integers(9, size=300)) for _ in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def recipe(llama, sources):
    assigned = [
        "calibration.length=24",
        "calibration.samples=6",
        "pruning.pattern=2:4",
        "evaluation.protocol=concat-32",
    ]
    given = {"model": str(llama), "evaluation.text": str(sources / "held.jsonl"), "evaluation.limit": 6, "seed": 3}
    return load_recipe(None, assigned, given)


@pytest.fixture
def both(sources):
    return [str(sources / "one.jsonl"), str(sources / "two.jsonl")]


@pytest.fixture
def counted(monkeypatch):
    """The trials that were pruned and measured."""
    measured, measure = [], TrialRunner.measure

    def counting(self, trial):
        measured.append(trial)
        return measure(self, trial)

    monkeypatch.setattr(TrialRunner, "measure", counting)
    return measured


def test_a_search_runs_each_trial_once(recipe, both, counted, tmp_path):
    first = find_mixture(recipe, both, Search(seeds=1), tmp_path)
    assert len(counted) == len(set(counted)) == 5 == first.trials
    assert not list(tmp_path.glob("**/*.safetensors"))
    assert find_mixture(recipe, both, Search(seeds=1), tmp_path) == first
    larger = find_mixture(recipe, both, Search(samples=20, base=6, seeds=1), tmp_path)
    assert sum(larger.amounts) == 20
    assert larger.beta == first.beta
    assert len(counted) == 5
    assert find_mixture(recipe, both, Search(seeds=2), tmp_path).trials == 10
    assert [trial.seed for trial in counted] == [3] * 5 + [4] * 5


def test_what_decides_a_loss_decides_which_trials_are_shared(recipe, both, tmp_path):
    def journal(settings=(), sources=both, search=None):
        return plan_mixture(load_recipe(None, settings, recipe.model_dump()), sources, search).journal(tmp_path)

    assert journal() == journal(search=Search(samples=9, base=7, seeds=1, compare=2)) == journal(["seed=8"])
    others = [["pruning.pattern=4:8"], ["calibration.length=25"], ["evaluation.limit=5"], ["pruning.method=ria"]]
    places = [journal(), journal(sources=both[::-1]), *map(journal, others)]
    assert len(set(places)) == len(places)


def test_an_interrupted_search_goes_on(recipe, both, counted, tmp_path, monkeypatch):
    def dying(_, trial):
        counted.append(trial)
        if len(counted) == 4:
            raise KeyboardInterrupt
        return {"text": planted_loss(trial, 0)}

    monkeypatch.setattr(TrialRunner, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        find_mixture(recipe, both, Search(seeds=1), tmp_path)
    stage = plan_mixture(recipe, both, Search(seeds=1))
    assert stage.done(tmp_path) == set(stage.trials[:3])
    found = stage.run(tmp_path, Reporter())
    assert counted == [*stage.trials[:4], *stage.trials[3:]]
    assert found.beta == find_mixture(recipe, both, Search(seeds=1), tmp_path / "calm").beta


def test_a_trial_has_its_amounts_and_its_loss_is_the_log_of_the_perplexity(recipe, both, tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(mixing_trials.shutil, "rmtree", lambda folder, **_: kept.setdefault("folder", folder))
    stage = plan_mixture(recipe, both, Search(seeds=1))
    place = tmp_path / "place"
    runner = TrialRunner(
        recipe, stage.model, stage.parts, stage.texts, Journal(None), place, tmp_path / "store", Reporter()
    )
    (loss,) = runner.losses([Trial((5, 2), 9)], "trials")
    text = stage.texts[0].evaluation_text()
    assert loss == pytest.approx(math.log(perplexity(load_model(kept["folder"]), text, stage.texts[0].protocol).value))
    (calibration,) = (tmp_path / "store" / "calibration").iterdir()
    samples = [json.loads(line) for line in (calibration / "samples.jsonl").read_text().splitlines()]
    assert sorted(sample["origin"].split(":")[0] for sample in samples) == ["one.jsonl"] * 5 + ["two.jsonl"] * 2
    assert trial_recipe(recipe, stage.parts, Trial((5, 0), 9)).calibration.mixture[0].source == both[0]


def test_the_comparison_is_on_fresh_seeds_and_paired(recipe, both, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(
        TrialRunner,
        "measure",
        lambda _, trial: counted.append(trial) or {"text": planted_loss(trial, sum(trial.amounts))},
    )
    found = find_mixture(recipe, both, Search(samples=40, base=12, seeds=2, compare=3), tmp_path)
    fresh = [trial for trial in counted if trial.seed > 4]
    assert {trial.seed for trial in fresh} == {5, 6, 7}
    assert {trial.amounts for trial in fresh} == {(20, 20), tuple(found.amounts)}
    comparison = found.comparison
    assert comparison is not None
    assert found.verdict == comparison.verdict == "better"
    assert found.untried == [both[0]]
    differences = np.subtract(comparison.found, comparison.equal)
    assert comparison.difference == pytest.approx(differences.mean())
    assert comparison.half == pytest.approx(student.ppf(0.975, 2) * differences.std(ddof=1) / 3**0.5)
    assert find_mixture(recipe, both, Search(samples=40, base=12, seeds=2, compare=3), tmp_path) == found


def planted_loss(trial, salt):
    one, two = trial.amounts
    return 3 + trial.seed + 2 * (one + 1) ** -0.5 + 0.2 * (two + 1) ** -0.5 + 1e-4 * math.sin(salt + 31 * trial.seed)


def test_the_loss_is_the_mean_over_the_validation_texts(recipe, both, tmp_path, sources, monkeypatch):
    monkeypatch.setattr(
        TrialRunner, "measure", lambda _, trial: {"a": planted_loss(trial, 1), "b": planted_loss(trial, 1) + 2}
    )
    one = find_mixture(recipe, both, Search(seeds=1, texts=["prose", str(sources / "held.jsonl")]), tmp_path)
    trials = plan_mixture(recipe, both, Search(seeds=1)).trials
    expected = fit([t.amounts for t in trials], [planted_loss(t, 1) + 1 for t in trials], [t.seed for t in trials])
    assert one.loss_equal == pytest.approx(expected.loss([3, 3]))


def test_the_command_line(llama, sources, both, recipe, tmp_path, capsys):
    words = ["mix", str(llama), "--source", both[0], "--source", both[1], "--source", "self", "--seeds", "1", "-q"]
    words += ["--text", str(sources / "held.jsonl"), "--store", str(tmp_path), "--samples", "6"]
    for setting in ("calibration.length=24", "pruning.pattern=2:4", "evaluation.protocol=concat-32"):
        words += ["--set", setting]
    words += ["--set", "evaluation.limit=4", "--set", "calibration.generation.batch_size=4"]
    assert main([*words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [trial["amounts"]["self"] for trial in planned["trials"]] == [2, 2, 2, 2, 2, 6, 1]
    assert not any(trial["done"] for trial in planned["trials"])
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["weights"]) == pytest.approx(1)
    assert sum(found["amounts"]) == 6
    assert found["sources"] == [*both, "self"]
    assert min(found["beta"]) >= 0
    (tmp_path / "r.yaml").write_text(found["snippet"])
    pasted = load_recipe(str(tmp_path / "r.yaml")).calibration
    assert [(part.source, part.weight) for part in pasted.mixture] == [
        (name, amount) for name, amount in zip(found["sources"], found["amounts"], strict=True) if amount
    ]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("done") == 7
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "beta" in printed
    assert "predicted gain" in printed
    assert "  source: mixture" in printed


@pytest.mark.parametrize(
    ("names", "search", "settings", "sentence"),
    [
        (["one"], Search(), [], "at least 2 sources, found '.*one.jsonl'; give --source"),
        ([], Search(), [], "at least 2 sources, found none"),
        (["one", "two", "one"], Search(), [], "one.jsonl' was given 2 times; give each source once"),
        (["one", "two"], Search(samples=1), [], "1 samples cannot be shared by 2 sources"),
        (["one", "two"], Search(base=1), [], r"1 samples of the first trial \(base\) cannot be shared"),
        (["one", "two"], Search(base=2, seeds=1), [], "3 trials are too few to fit 4 unknowns"),
        (["one", "two"], Search(factor=1.0), [], "larger than 1, found 1"),
        (["one", "two"], Search(seeds=0), [], "at least 1 seed, found 0"),
        (["one", "two"], Search(compare=1), [], "at least 2 fresh seeds"),
        (["one", "two"], Search(), ["pruning.method=magnitude"], "'magnitude' needs no calibration data"),
        (["one", "held"], Search(), [], "held.jsonl' and the source '.*held.jsonl' are the same text"),
    ],
)
def test_what_makes_no_search_is_refused(recipe, sources, names, search, settings, sentence):
    asked = load_recipe(None, settings, recipe.model_dump())
    with pytest.raises(UsageError, match=sentence):
        plan_mixture(asked, [str(sources / f"{name}.jsonl") for name in names], search)
    with pytest.raises(UsageError, match="cannot be one of the sources"):
        plan_mixture(asked, ["mixture", "prose"], search)


def test_the_sources_of_the_recipe_are_taken_where_none_are_given(recipe, both):
    mixture = [{"source": name, "weight": 2.0} for name in both]
    asked = load_recipe(None, [], recipe.model_dump() | {"calibration": {"source": "mixture", "mixture": mixture}})
    assert [part.source for part in plan_mixture(asked).parts] == both


def test_a_loss_that_is_no_number_is_an_error_and_is_not_remembered(recipe, both, tmp_path, monkeypatch):
    monkeypatch.setattr(mixing_trials, "sequence_losses", lambda _, sequences, *__: [math.nan] * len(sequences))
    with pytest.raises(NumericsError, match=r"3 of '.*one.jsonl', 3 of .* and seed 3 has the validation loss nan on"):
        find_mixture(recipe, both, Search(seeds=1), tmp_path)
    assert not plan_mixture(recipe, both, Search(seeds=1)).done(tmp_path)


def test_two_searches_do_not_run_the_same_trials_at_once(recipe, both, tmp_path):
    stage = plan_mixture(recipe, both, Search(seeds=1))
    with only_one(stage.journal(tmp_path)), pytest.raises(StoreError, match="running trials of the same setting"):
        stage.run(tmp_path, Reporter())
