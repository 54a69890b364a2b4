"""The paper's two ways to cut text, against slow textbook versions of its program."""

from __future__ import annotations

import json
import random

import pytest

from conftest import tiny_tokenizer
from secateur.calibration.document import Document
from secateur.calibration.packing import Packing
from secateur.calibration.sources import base
from secateur.calibration.sources.base import Texts
from secateur.calibration.sources.files import FileSource
from secateur.calibration.sources.random_tokens import RandomTokens
from secateur.cli.main import main
from secateur.errors import CalibrationError
from secateur.pipeline.store import read_manifest


def texts_of(source) -> list[str]:
    return [text for _, text in source.texts()]


def words(count: int, number: int) -> str:
    vocabulary = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    rng = random.Random(number)
    return " ".join(rng.choice(vocabulary) for _ in range(count))


TEXTS = [(f"t{number}", words(count, number)) for number, count in enumerate([3, 90, 2, 40, 0, 60, 1, 75])]


def textbook_documents(texts, tokenizer, samples, length, seed):
    random.seed(seed)
    found = []
    for _ in range(samples):
        while True:
            ids = tokenizer(texts[random.randint(0, len(texts) - 1)])["input_ids"]
            if len(ids) > length:
                break
        start = random.randint(0, len(ids) - length - 1)
        found.append(tuple(ids[start : start + length]))
    return found


def textbook_joined(texts, tokenizer, samples, length, seed):
    ids = tokenizer(" ".join(texts))["input_ids"]
    random.seed(seed)
    starts = [random.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return [tuple(ids[start : start + length]) for start in starts]


def paper(rule, texts, tokenizer, samples, length, seed):
    source = Texts("test", texts)
    packing = Packing(length, rule, "tokenizer", 0, 1)
    return packing.pack(source.for_rule(rule, tokenizer, seed), samples, seed, "test")


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize(
    ("rule", "textbook"), [("paper-document", textbook_documents), ("paper-joined", textbook_joined)]
)
def test_the_papers_windows_are_those_of_its_program(rule, textbook, seed):
    tokenizer, state = tiny_tokenizer(), random.getstate()
    found = paper(rule, TEXTS, tokenizer, 20, 32, seed)
    expected = textbook([text for _, text in TEXTS], tokenizer, 20, 32, seed)
    random.setstate(state)
    assert [sample.token_ids for sample in found.samples] == expected
    assert found.account["windows_overlapping"] > 0
    assert found.account["windows"] == 20
    assert found.account["distinct_windows"] == len(set(expected))


def test_a_begin_token_stands_only_where_a_text_begins():
    tokenizer = tiny_tokenizer()
    for rule, most in (("paper-document", 20), ("paper-joined", 1)):
        positions = [
            position
            for seed in range(20)
            for sample in paper(rule, TEXTS, tokenizer, 20, 32, seed).samples
            for position, token in enumerate(sample.token_ids)
            if token == tokenizer.bos_token_id
        ]
        assert positions
        assert set(positions) == {0}
        assert most == 20 or len(positions) < 20


def test_the_account_of_long_documents():
    found = paper("paper-document", TEXTS, tiny_tokenizer(), 12, 32, 0)
    account, origins = found.account, [sample.origin for sample in found.samples]
    assert account["documents_in_source"] == len(TEXTS)
    assert account["documents_drawn"] - account["documents_too_short"] == 12
    assert account["documents_repeated"] == 12 - len(set(origins))
    assert set(origins) <= {"t1", "t3", "t5", "t7"}
    only = [Document(tuple(range(100, 110)), origin="a")]
    assert Packing(9, "paper-document").pack(only, 3, 0, "x").samples[0].token_ids == tuple(range(100, 109))
    assert Packing(9, "paper-document").pack(only, 3, 0, "x").account["windows_overlapping"] == 3
    assert Packing(9, "paper-document").pack(only, 1, 0, "x").account["windows_overlapping"] == 0


def test_the_account_of_joined_texts():
    documents = [Document(tuple(range(10, 20)), origin="a"), Document(tuple(range(20, 40)), origin="b")]
    found = Packing(5, "paper-joined").pack(iter(documents), 6, 0, "x")
    for sample in found.samples:
        assert sample.token_ids == tuple(range(sample.token_ids[0], sample.token_ids[0] + 5))
        assert sample.origin == ("a" if sample.token_ids[0] < 20 else "b")
    starts = [sample.token_ids[0] for sample in found.samples]
    near = sum(any(abs(one - other) < 5 and i != j for j, other in enumerate(starts)) for i, one in enumerate(starts))
    assert found.account["windows_overlapping"] == near
    assert found.account["tokens_read"] == 30


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("paper-document", "3 samples of 5000 tokens .* it yields 0: 8 documents in source, .* longer documents"),
        ("paper-joined", "3 samples of 5000 tokens .* it yields 0: .*joined must have more tokens than a sample"),
    ],
)
def test_the_papers_rules_run_out_with_a_sentence(rule, words):
    with pytest.raises(CalibrationError, match=words):
        paper(rule, TEXTS, tiny_tokenizer(), 3, 5000, 0)


@pytest.mark.parametrize("rule", ["paper-document", "paper-joined"])
def test_a_document_of_just_the_length_is_too_short_for_the_paper(rule):
    documents = [Document(tuple(range(10)))]
    with pytest.raises(CalibrationError, match="yields 0"):
        Packing(10, rule).pack(documents, 1, 0, "x")
    assert len(Packing(9, rule).pack(documents, 4, 0, "x").samples) == 4


def test_joining_in_pieces_changes_nothing_but_the_cuts(monkeypatch):
    tokenizer = tiny_tokenizer()
    whole = [token for document in Texts("x", TEXTS).paper_joined(tokenizer, 0) for token in document.token_ids]
    monkeypatch.setattr(base, "PIECE", 50)
    pieces = list(Texts("x", TEXTS).paper_joined(tokenizer, 0))
    assert len(pieces) > 20
    assert [token for document in pieces for token in document.token_ids] == whole
    assert whole == tokenizer(" ".join(text for _, text in TEXTS))["input_ids"]


def test_random_tokens_under_the_papers_rules():
    tokenizer = tiny_tokenizer()
    for rule in ("paper-document", "paper-joined"):
        source = RandomTokens()
        found = Packing(64, rule).pack(source.for_rule(rule, tokenizer, 0), 3, 0, "random")
        assert all(len(sample.token_ids) == 64 for sample in found.samples)


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "-q"])


SMALL = ["--samples", "6", "--length", "24"]


@pytest.mark.parametrize("packing", ["paper", "paper-document", "paper-joined"])
def test_the_papers_packing_of_a_file_from_the_command_line(llama, text_file, tmp_path, packing, capsys):
    out = tmp_path / "set"
    command = ["generate", llama, *SMALL, "--calibration", text_file, "--set", f"calibration.packing={packing}"]
    assert run(*command, "--out", out) == 0, capsys.readouterr().err
    manifest = read_manifest(out) or {}
    rule = "paper-joined" if packing == "paper-joined" else "paper-document"  # a file: long documents
    textbook = textbook_joined if rule == "paper-joined" else textbook_documents
    texts = texts_of(FileSource(text_file))
    state = random.getstate()
    expected = textbook(texts, tiny_tokenizer(), 6, 24, 0)
    random.setstate(state)
    found = [tuple(json.loads(line)["token_ids"]) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert found == expected
    assert manifest["spec"]["packing"] == packing
    card = (out / "README.md").read_text()
    assert "6 of 24 tokens" in card
    assert f"packing: {packing}" in card


def test_the_papers_packing_of_generated_text_is_joined(llama, tmp_path, capsys):
    out = tmp_path / "set"
    assert run("generate", llama, *SMALL, "--set", "calibration.packing=paper", "--out", out) == 0, capsys.readouterr()
    kept = [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]
    tokenizer = tiny_tokenizer()
    texts = [tokenizer.decode(entry["token_ids"], skip_special_tokens=True) for entry in kept]
    state = random.getstate()
    expected = textbook_joined(texts, tokenizer, 6, 24, 0)
    random.setstate(state)
    found = [tuple(json.loads(line)["token_ids"]) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["calibration.packing=paper-document"], "needs texts longer than a sample"),
        (["calibration.packing=paper", "calibration.bos=sample"], "leave calibration.bos at auto, not sample"),
    ],
)
def test_what_the_papers_packing_cannot_do(llama, tmp_path, capsys, settings, words):
    flags = [flag for setting in settings for flag in ("--set", setting)]
    assert run("generate", llama, *SMALL, *flags, "--out", tmp_path / "set") == 2
    assert words in capsys.readouterr().err
