"""Mixtures: shares, parts of their own kind, accounts, errors, and going on after an interruption."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from secateur.cli.main import main
from secateur.errors import RecipeError, UnknownNameError, UsageError
from secateur.generation.transformers_engine import TransformersEngine
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.calibration_stage import shares
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.store import read_manifest


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def words(count: int, number: int) -> str:
    vocabulary = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    rng = random.Random(number)
    return " ".join(rng.choice(vocabulary) for _ in range(count))


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "-q"])


@pytest.fixture
def two(tmp_path):
    """Two sources of different letters, so that it can be told where a sample is from."""
    write_lines(tmp_path / "fox.jsonl", [{"text": words(60, number)} for number in range(12)])
    write_lines(tmp_path / "digits.jsonl", [{"body": "0 1 2 3 4 5 6 7 8 9 " * 6} for _ in range(12)])
    return tmp_path / "fox.jsonl", tmp_path / "digits.jsonl"


def mixed(*parts: dict, samples: int = 7, **calibration) -> Recipe:
    spec = {"source": "mixture", "mixture": list(parts), "samples": samples, "length": 16, **calibration}
    return Recipe.model_validate({"model": calibration.pop("model", "reference"), "calibration": spec})


def test_shares_are_by_largest_remainder():
    assert shares([2, 1], 128) == [85, 43]
    assert shares([1, 1, 1], 8) == [3, 3, 2]
    assert shares([0.1, 0.2, 0.7], 10) == [1, 2, 7]
    assert shares([1, 1000], 10) == [0, 10]
    for weights in ([3, 5, 7.5], [1e-3, 1, 1], [1.0]):
        assert sum(shares(weights, 97)) == 97


def test_a_mixture_from_the_command_line(llama, two, tmp_path, capsys):
    fox, digits = two
    mixture = f"calibration.mixture=[{{source: {fox}, weight: 2}}, {{source: {digits}, text_key: body}}]"
    out = tmp_path / "set"
    command = ["generate", llama, "--calibration", "mixture", "--set", mixture, "--samples", 7, "--length", 16]
    assert run(*command, "--out", out) == 0, capsys.readouterr().err
    entries = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    kinds = [entry["origin"].partition(".")[0] for entry in entries]
    assert (kinds.count("fox"), kinds.count("digits")) == (5, 2)
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)
    account = (read_manifest(out) or {})["account"]
    assert account[str(fox)]["windows"] == 5
    assert account[str(digits)]["windows"] == 2
    assert account[str(digits)]["distinct_documents"] == 1
    assert "fox.jsonl" in (out / "README.md").read_text()
    assert run(*command, "--out", tmp_path / "other", "--seed", 1) == 0
    digests = [(read_manifest(tmp_path / name) or {})["set_digest"] for name in ("set", "other")]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("recipe", "error", "words"),
    [
        (mixed(), RecipeError, "go together; found source 'mixture' and 0 parts"),
        (mixed({"source": "prose"}, source="prose"), RecipeError, "found source 'prose' and 1 parts"),
        (mixed({"source": "prose"}, {"source": "prose"}), RecipeError, "different sources; found prose again"),
        (mixed({"source": "prose"}, {"source": "mixture"}), RecipeError, "found a mixture again"),
        (
            mixed({"source": "prose"}, {"source": "self", "weight": 99}, samples=3),
            UsageError,
            "'prose' would give none",
        ),
        (mixed({"source": "prosa"}), UnknownNameError, "did you mean 'prose'"),
    ],
)
def test_mixtures_that_cannot_be(llama, recipe, error, words):
    with pytest.raises(error, match=words):
        plan_calibration(recipe.model_copy(update={"model": str(llama)}))


@pytest.mark.parametrize("weight", ["0", "-1", ".inf", ".nan"])
def test_weights_that_make_no_sense(llama, capsys, weight):
    mixture = f"calibration.mixture=[{{source: prose, weight: {weight}}}]"
    assert run("generate", llama, "--calibration", "mixture", "--set", mixture) == 2
    assert "calibration.mixture.0.weight" in capsys.readouterr().err


def test_only_the_models_own_part_of_a_mixture_is_filtered_unless_asked(llama, two):
    own = mixed({"source": "self"}, {"source": str(two[0])}).model_copy(update={"model": str(llama)})
    stage = plan_calibration(own)
    assert [type(judge).__name__ for judge in stage.filters] == ["PerplexityFilter"]
    assert stage.spec["filters"] is None
    assert stage.spec["own_filters"][0]["name"] == "perplexity"
    asked = mixed({"source": "self"}, {"source": str(two[0])}, filters=[{"name": "perplexity"}])
    other = plan_calibration(asked.model_copy(update={"model": str(llama)}))
    assert other.spec["filters"] is not None
    assert not plan_calibration(mixed({"source": str(two[0])}).model_copy(update={"model": str(llama)})).filters


def test_an_interrupted_part_of_a_mixture_goes_on_where_it_stopped(llama, two, tmp_path, monkeypatch, capsys):
    mixture = f"calibration.mixture=[{{source: {two[0]}}}, {{source: self, weight: 2}}]"
    settings = ["--calibration", "mixture", "--set", mixture, "--set", "calibration.generation.batch_size=2"]
    command = ["generate", llama, *settings, "--samples", 9, "--length", 16]
    assert run(*command, "--out", tmp_path / "whole") == 0, capsys.readouterr().err

    generate, batches = TransformersEngine.generate, []

    def counted(self, prompts, *rest, **named):
        batches.append(len(prompts))
        if dying and len(batches) == 3:
            raise KeyboardInterrupt
        return generate(self, prompts, *rest, **named)

    dying = True
    monkeypatch.setattr(TransformersEngine, "generate", counted)
    assert run(*command, "--out", tmp_path / "resumed") == 130
    assert not (tmp_path / "resumed").exists()
    made, dying = len(batches) - 1, False
    batches.clear()
    assert run(*command, "--out", tmp_path / "resumed") == 0
    whole, resumed = (read_manifest(tmp_path / name) or {} for name in ("whole", "resumed"))
    assert resumed["set_digest"] == whole["set_digest"]
    account = resumed["account"]["self"]
    assert account == whole["account"]["self"]
    assert sum(batches) == account["generations"] - 2 * made
    assert account["generations_dropped"] > 0
    dropped = [json.loads(line)["origin"] for line in (tmp_path / "resumed" / "dropped.jsonl").read_text().splitlines()]
    assert set(dropped) == {"self"}
    assert not list((tmp_path / "resumed").glob("*.journal"))
