"""Perplexity protocols against the textbook formula; divergences against torch's own."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import prune_folder
from secateur.cli.main import app
from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.fidelity import DenseLogits, divergences, fidelity, read
from secateur.evaluation.perplexity import perplexity, sequence_losses
from secateur.evaluation.perplexity_task import Alpaca, WikiText2
from secateur.evaluation.protocol import parse_protocol, tokenise
from secateur.evaluation.scorer import Scorer
from secateur.models.loading import load_model, load_tokenizer
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.evaluation_tasks import plan_tasks
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.recipe_file import load_recipe

TEXTS = ["the quick brown fox " * 12, "lazy dog", "jumps over the lazy dog " * 40]


def loss(model, ids) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()


@pytest.fixture(scope="module")
def model(llama):
    return load_model(llama)


def test_concat_is_exp_of_the_mean_loss_over_windows_of_the_joined_text(llama, model):
    tokenizer, protocol = load_tokenizer(llama), parse_protocol("concat-16")
    ids = tokenizer("\n\n".join(TEXTS))["input_ids"]
    windows = [ids[i : i + 16] for i in range(0, len(ids) - 15, 16)]
    text = tokenise(TEXTS, tokenizer, protocol, 64)
    assert [list(sequence) for sequence in text.sequences] == windows
    expected = math.exp(sum(loss(model, window) for window in windows) / len(windows))
    for batch in (1, 3, None):
        found = perplexity(model, text, protocol, batch)
        assert found.value == pytest.approx(expected, rel=1e-5)
    assert (found.sequences, found.tokens) == (len(windows), 16 * len(windows))


def test_document_is_the_mean_of_each_document_s_perplexity(llama, model):
    tokenizer, protocol = load_tokenizer(llama), parse_protocol("document")
    text = tokenise(TEXTS, tokenizer, protocol, 64)
    each = [math.exp(loss(model, tokenizer(entry)["input_ids"][:64])) for entry in TEXTS]
    for batch in (1, 2, 3):  # padded batches
        assert perplexity(model, text, protocol, batch).value == pytest.approx(sum(each) / 3, rel=1e-5)
    assert text.cut == sum(len(tokenizer(entry)["input_ids"]) > 64 for entry in TEXTS) == 1


def test_limits_spread_over_the_text(llama):
    tokenizer, protocol = load_tokenizer(llama), parse_protocol("concat-8")
    whole, few = (tokenise(TEXTS, tokenizer, protocol, 64, limit).sequences for limit in (None, 4))
    assert len(few) == 4
    assert few == tuple(whole[index * len(whole) // 4] for index in range(4))


def test_protocols_that_make_no_sense(llama):
    tokenizer = load_tokenizer(llama)
    for name in ("concat", "concat-1", "wikitext"):
        with pytest.raises(UsageError, match="There is no perplexity protocol"):
            parse_protocol(name)
    with pytest.raises(UsageError, match="use concat-64"):
        tokenise(TEXTS, tokenizer, parse_protocol("concat-2048"), 64)
    with pytest.raises(CalibrationError, match="fewer than one window"):
        tokenise(["x"], tokenizer, parse_protocol("concat-32"), 64)


def test_divergences_are_torch_s():
    p, q = torch.randn(7, 11), torch.randn(7, 11) * 3
    kl, js, top1 = divergences(p, q)
    a, b = p.softmax(-1), q.softmax(-1)
    middle = (a + b) / 2
    torch.testing.assert_close(kl, torch.nn.functional.kl_div(b.log(), a, reduction="none").sum(-1))
    half = [torch.nn.functional.kl_div(middle.log(), x, reduction="none").sum(-1) for x in (a, b)]
    torch.testing.assert_close(js, (half[0] + half[1]) / 2, atol=1e-6, rtol=1e-4)
    assert (js <= math.log(2)).all()
    torch.testing.assert_close(divergences(q, p)[1], js, atol=1e-6, rtol=1e-4)
    assert top1.tolist() == (a.argmax(-1) == b.argmax(-1)).float().tolist()


def test_a_token_that_both_rule_out_diverges_by_nothing():
    one, other = torch.tensor([[1.0, 2.0, -math.inf]]), torch.tensor([[2.0, 1.0, -math.inf]])
    found, expected = divergences(one, other), divergences(one[:, :2], other[:, :2])
    assert torch.allclose(found, expected)
    assert divergences(one.nan_to_num(neginf=0.0), other)[0] == math.inf  # only the pruned one does: nothing is so far


def test_fidelity_of_a_model_to_itself_is_perfect_and_padding_changes_nothing(llama, model):
    same = fidelity(model, model, [[0, 5, 6, 7], [0, 9]], batch_size=2)
    assert (same.kl, same.top1, same.tokens) == (0, 1, 4)
    assert same.js == pytest.approx(0, abs=1e-6)
    other = load_model(llama)
    with torch.no_grad():
        other.lm_head.weight.add_(torch.randn_like(other.lm_head.weight) * 0.1)
    sequences = [[0, 5, 6, 7, 30, 31], [0, 9, 44]]
    one, two = (fidelity(model, other, sequences, batch_size=size) for size in (1, 2))
    assert one.kl == pytest.approx(two.kl, rel=1e-4)
    assert one.kl > 0
    assert one.tokens == two.tokens == 7


def test_agrees_with_the_standard_text(shared):
    """A real model on real stories, far better than chance: the forward is the model's own."""
    folder = shared / "data" / "models" / "stories260K"
    import gzip

    with gzip.open(shared / "data" / "text" / "tinystories" / "heldout.jsonl.gz", "rt") as stream:
        texts = [json.loads(line)["text"] for _, line in zip(range(40), stream, strict=False)]
    model, tokenizer, protocol = load_model(folder), load_tokenizer(folder), parse_protocol("concat-256")
    text = tokenise(texts, tokenizer, protocol, 512)
    assert perplexity(model, text, protocol).value < 8


GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.mark.parametrize("command", [line for line in "".join(blocks("sh")).splitlines() if line])
def test_commands_in_the_guide_parse(command):
    function, bound, *_ = app.parse_args(
        shlex.split(command, comments=True)[1:], print_error=False, exit_on_error=False
    )
    assert function.__name__ == "evaluate"
    common = bound.arguments.get("common")
    load_recipe(None, common.set_ if common else [])


def test_the_recipe_in_the_guide_is_valid(tmp_path, monkeypatch):
    harness = pytest.importorskip("secateur.evaluation.harness")
    (tmp_path / "r.yaml").write_text(blocks("yaml")[0])
    monkeypatch.setattr(harness.HarnessTask, "check", lambda self: None)
    tasks = plan_tasks(load_recipe(str(tmp_path / "r.yaml")).evaluation)
    assert [task.name for task in tasks][-4:] == ["gsm8k", "next-line", "parses", "alpaca"]


def test_the_python_example_in_the_guide_runs(llama, text_file, tmp_path, monkeypatch, capsys):
    for place, share in ("a", 0.5), ("b", 0.7):
        prune_folder(llama, tmp_path / "pruned" / place, "magnitude", "unstructured", share)
    settings = f'["evaluation.text={text_file}", "evaluation.protocol=concat-32"], {{"model": "{llama}"}}'
    example = blocks("python")[0].replace('[], {"model": "reference"}', settings)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out.count("'kl'") == 2


def test_named_protocols_take_the_first_texts_and_their_own_source(llama, model, text_file):
    tokenizer, protocol = load_tokenizer(llama), parse_protocol("alpaca")
    assert (protocol.first, protocol.window, str(protocol)) == (10_000, None, "alpaca")
    few = tokenise(TEXTS, tokenizer, replace(protocol, first=2), 64)
    assert few == tokenise(TEXTS[:2], tokenizer, parse_protocol("document"), 64)
    recipe = Recipe.model_validate({"model": str(llama), "evaluation": {"protocol": "alpaca"}})
    assert plan_evaluation(recipe, resolve_model(str(llama))).source.name == "vicgalle/alpaca-gpt4"
    found = Alpaca(text=str(text_file), limit=5).score(Scorer(model, tokenizer, 64))
    texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    each = [math.exp(loss(model, tokenizer(texts[index])["input_ids"][:64])) for index in range(0, 50, 10)]
    assert found.metrics["ppl"] == pytest.approx(sum(each) / 5, rel=1e-5)
    assert found.facts["cut"] > 0
    joined = WikiText2(text=str(text_file)).score(Scorer(model, tokenizer, 64))
    expected = perplexity(
        model, tokenise(texts, tokenizer, parse_protocol("concat-64"), 64), parse_protocol("concat-64")
    )
    assert joined.metrics["ppl"] == pytest.approx(expected.value, rel=1e-6)
    assert joined.facts["protocol"] == "concat-64"


def test_one_forward_gives_the_losses_and_the_divergences(llama, model):
    other = load_model(llama)
    with torch.no_grad():
        other.lm_head.weight.add_(torch.randn_like(other.lm_head.weight) * 0.1)
    sequences = [[0, 5, 6, 7, 30, 31], [0, 9, 44], [0, 8]]
    kept, again = DenseLogits(model, sequences, 2**20, 2), DenseLogits(model, sequences, 10, 2)
    assert (kept.keeps, again.keeps, kept.bytes) == (True, False, 4 * 300 * 8)
    first, second, third = read(other, kept), read(other, kept), read(other, again)
    assert first == second == third
    assert first[0] == sequence_losses(other, sequences, 2)
    assert first[1] == fidelity(model, other, sequences, 2)
