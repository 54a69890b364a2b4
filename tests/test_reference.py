"""The bundled model is a real language model of Python, as its card says."""

from __future__ import annotations

import json
import math

import pytest
import torch

from secateur.calibration.sources.python_texts import StdlibHeldout, StdlibTrain
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.protocol import parse_protocol, tokenise
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model, load_tokenizer
from secateur.models.locate import reference_folder


@pytest.fixture(scope="module")
def reference():
    folder = reference_folder()
    return load_model(folder, dtype=torch.float32), load_tokenizer(folder)


def test_it_is_as_large_as_it_says():
    folder = reference_folder()
    facts = json.loads((folder / "training.json").read_text())
    checkpoint = Checkpoint(folder)
    assert checkpoint.dtype() == torch.bfloat16
    assert checkpoint.parameters == facts["parameters"] >= 4_000_000
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20 * 2**20
    assert f"{facts['heldout_perplexity']:.3f}" in (folder / "README.md").read_text()
    assert facts["epochs"] >= 1


def test_held_out_perplexity_is_at_least_20_times_below_a_unigram_model_s(reference):
    model, tokenizer = reference
    texts = [text for _, text in StdlibHeldout().texts()]
    text = tokenise(texts, tokenizer, parse_protocol("concat-512"), 512, 48)
    ours = perplexity(model, text, parse_protocol("concat-512")).value
    counts = torch.ones(len(tokenizer), dtype=torch.float64)
    for number, (_, source) in enumerate(StdlibTrain().texts()):
        if number % 8 == 0:
            ids = torch.tensor(tokenizer.encode(source, add_special_tokens=False))
            counts += torch.bincount(ids, minlength=len(tokenizer))
    log_probability = (counts / counts.sum()).log()
    targets = torch.tensor([token for sequence in text.sequences for token in sequence[1:]])
    unigram = math.exp(-log_probability[targets].mean())
    assert unigram / ours >= 20


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("import unittest\nfrom test import", " support"),
        ("if __name__ ==", " '__main__'|\"__main__\""),
        ("class Point:\n    def __init__(", "self"),
        ("for i in", " range"),
        ("    def setUp(", "self"),
    ],
)
def test_its_likeliest_continuations_are_python(reference, prompt, expected):
    import re

    model, tokenizer = reference
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    continuation = tokenizer.decode(found[0, ids.shape[1] :])
    assert re.match(rf"\s*({expected.replace(' ', chr(92) + 's*')})", continuation), continuation


def test_its_tokenizer_loses_nothing(reference):
    _, tokenizer = reference
    for text in ("def f(x):\n\treturn {'a': x}\n", "\u00e9\u4e2d\U0001f600 \u2028", "    \n\n  x"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
