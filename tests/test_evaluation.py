"""Perplexity protocols against the textbook formula; divergences against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.fidelity import divergences, fidelity
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.protocol import parse_protocol, tokenise
from secateur.models.loading import load_model, load_tokenizer

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
    import json

    with gzip.open(shared / "data" / "text" / "tinystories" / "heldout.jsonl.gz", "rt") as stream:
        texts = [json.loads(line)["text"] for _, line in zip(range(40), stream, strict=False)]
    model, tokenizer, protocol = load_model(folder), load_tokenizer(folder), parse_protocol("concat-256")
    text = tokenise(texts, tokenizer, protocol, 512)
    assert perplexity(model, text, protocol).value < 8
