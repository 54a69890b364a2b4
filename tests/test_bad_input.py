"""Bad input: every kind gets a sentence, or a warning where there is an answer all the same; nothing half-made is left."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from conftest import CONFIGS, save_model, tiny_tokenizer
from secateur.calibration.filters import FILTERS
from secateur.calibration.filters.base import Filter, Verdict
from secateur.calibration.packing import Document, Packing
from secateur.calibration.sources import base
from secateur.calibration.sources.base import Texts, pieces_of
from secateur.calibration.sources.files import FileSource
from secateur.cli.main import main
from secateur.errors import CalibrationError
from secateur.models.checkpoint import Checkpoint
from secateur.pipeline.set_facts import warnings_of
from secateur.pipeline.store import read_manifest
from secateur.registry import Entry

SMALL = ["--samples", "6", "--length", "24"]
FOX = "the quick brown fox jumps over the lazy dog "


@pytest.fixture
def run(tmp_path, capsys):
    """Run a command with a store of its own; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return call


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "text".encode("utf-16"), r"byte 0: .*looks like UTF-16\); convert it to UTF-8"),
        ("a.txt", "text".encode("utf-16-le"), r"byte 1 is zero: UTF-16, or not text at all"),
        ("a.txt", "caf\u00e9".encode("latin-1"), r"is not UTF-8 text \(byte 3"),
        ("a.txt", bytes(range(256)), "is not UTF-8 text"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), "line 1, is not UTF-8 text .*looks like UTF-16"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16-be"), "line 1, is not UTF-8 text .byte 0 is zero"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', r"line 2, is not UTF-8 text \(byte 13"),
        ("a.jsonl", b'{"text": null}\n', "line 1, has no text .*found NoneType there"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ["x"]}\n', "line 2, has no text .*found list there"),
        ("a.jsonl", b"[" * 100_000, "line 1, is not JSON"),
        ("a.jsonl", b'{"text": "x \\ud800 y"}\n', "half a surrogate pair at character 2"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 500, mtime=0)[:-20], "is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"\xff\xfe\0", mtime=0), "line 1, is not UTF-8 text"),
        ("a.jsonl.gz", b"", "holds no text"),
        ("a.jsonl", b'{"text": "  "}\n', "holds no text"),
        ("a.parquet", b"", "is not a parquet file"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=words):
        list(FileSource(tmp_path / name).shuffled(0))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\r\n{"text": "three"}\r\n')
    assert [text for _, text in FileSource(tmp_path).texts()] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("column", "words"), [([1, 2], "row 1, has no text .*int there"), (["x", None], "row 2, .*NoneType")]
)
def test_parquet_rows_without_text(tmp_path, column, words):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(CalibrationError, match=words):
        list(FileSource(tmp_path / "a.parquet").texts())


def test_folders_with_nothing_to_read(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(CalibrationError, match=r"has no file that ends in \.txt, \.jsonl"):
        list(FileSource(tmp_path).texts())


def test_links_that_lead_in_a_circle_or_nowhere(tmp_path):
    lines(tmp_path / "a.jsonl", {"text": "x"})
    (tmp_path / "again").symlink_to(tmp_path)
    assert [text for _, text in FileSource(tmp_path).texts()] == ["x"]
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    with pytest.raises(CalibrationError, match=r"b\.jsonl cannot be read: Too many levels of symbolic links"):
        list(FileSource(tmp_path).texts())
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CalibrationError, match=r"b\.jsonl cannot be read: No such file"):
        list(FileSource(tmp_path).texts())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_file_that_may_not_be_read(tmp_path, name):
    (tmp_path / name).write_text("x")
    (tmp_path / name).chmod(0)
    with pytest.raises(CalibrationError, match=r"may not be read|can be read: .*Permission"):
        list(FileSource(tmp_path / name).texts())


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("a.jsonl", b"\x80"), ("a.txt", b"\0"), ("a.jsonl.gz", b"\x1f\x8b\x08"), ("a.parquet", b"PAR1")],
)
def test_a_bad_file_ends_the_command_with_a_sentence_and_leaves_no_set(run, llama, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    code, printed, errors = run("generate", llama, *SMALL, "--calibration", tmp_path / name, "--out", tmp_path / "set")
    assert code == 2
    assert printed == ""
    assert errors.startswith("error: ")
    assert errors.endswith(".\n")
    assert name in errors
    assert not (tmp_path / "set").exists()


# Long texts


class Counting:
    """A tokenizer that notes the lengths of what it is given."""

    def __init__(self) -> None:
        self.inner, self.lengths = tiny_tokenizer(), []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.lengths.append(len(text))
        return self.inner.encode(text[:1000], add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_a_long_line_is_tokenised_in_pieces_and_only_as_far_as_needed(tmp_path, name):
    text = FOX * 500_000  # 22 MB
    (tmp_path / name).write_text(text if name == "long.txt" else json.dumps({"text": text}) + "\n")
    for rule in ("concat", "document", "whole"):
        tokenizer = Counting()
        source = FileSource(tmp_path / name)
        packing = Packing(16, rule, "document", 0, 1, pool=2)
        read = source.for_rule(rule, tokenizer, 0, packing.pool_tokens(3))
        found = packing.pack(read, 3, 0, "long")
        assert len(found.samples) == 3
        assert max(tokenizer.lengths) <= base.PIECE
        assert len(tokenizer.lengths) <= 3
    # The begin token stands where the text begins, no end token where it goes on.
    documents = list(zip(FileSource(tmp_path / name).documents(Counting(), 0), range(99), strict=False))
    assert [document.begun for document, _ in documents] == [True] + [False] * (len(documents) - 1)
    assert [document.ended for document, _ in documents] == [False] * (len(documents) - 1) + [True]


@pytest.mark.parametrize("text", ["short", FOX * 30_000, "x" * 2_500_000, " \n" * 900_000, ""])
def test_pieces_are_the_text(text):
    pieces = pieces_of(text)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= base.PIECE for piece in pieces) or text == ""
    assert len(pieces) == max(1, math.ceil(len(text) / base.PIECE))
    if FOX in text:
        assert all(piece.startswith(" ") for piece in pieces[1:])


def test_pieces_tokenise_to_the_whole(monkeypatch):
    tokenizer, text = tiny_tokenizer(), FOX * 40
    whole = tokenizer.encode(text, add_special_tokens=False)
    (alone,) = Texts("x", [("a", text)]).documents(tokenizer, 0)
    assert list(alone.token_ids) == whole
    assert (alone.begun, alone.ended) == (True, True)
    monkeypatch.setattr(base, "PIECE", 100)
    pieces = list(Texts("x", [("a", text)]).documents(tokenizer, 0))
    assert len(pieces) > 10
    assert [token for piece in pieces for token in piece.token_ids] == whole
    packing = Packing(len(whole) + 2, "concat", "document", 0, 1)
    assert packing.pack(pieces, 1, 0, "x").samples[0].token_ids == (0, *whole, 1)


# Too short, too few, all the same


@pytest.mark.parametrize(
    ("packing", "words"),
    [
        ("concat", "6 samples of 60 tokens were asked of .* it yields 0: 2 documents read"),
        ("document", "it yields 0: 2 documents read, 2 documents too short.*use calibration.packing=concat"),
        ("whole", "it yields 2: 2 documents read.*a larger source"),
        ("paper", "it yields 0: 2 documents in source"),
        ("paper-joined", "it yields 0: 1 pieces joined.*must have more tokens than a sample"),
    ],
)
def test_documents_shorter_than_a_sample(run, llama, tmp_path, packing, words):
    path = lines(tmp_path / "a.jsonl", {"text": "the fox"}, {"text": "a dog"})
    command = ["generate", llama, "--samples", 6, "--length", 60, "--calibration", path]
    code, _, errors = run(*command, "--set", f"calibration.packing={packing}")
    assert code == 2
    assert_matches(words, errors)


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(CalibrationError, match=pattern):
        raise CalibrationError(text)


def test_a_source_that_repeats_one_document_prunes_and_says_so(run, llama, tmp_path):
    path = lines(tmp_path / "same.jsonl", *[{"text": FOX * 3}] * 40)
    sets = ["--set", "calibration.samples=6", "--set", "calibration.length=24", "--set", "calibration.packing=document"]
    sets += ["--set", "evaluation.enabled=false"]
    code, printed, errors = run("prune", llama, *sets, "--method", "sparsegpt", "--calibration", path, "--json", "-q")
    assert code == 0, errors
    manifest = read_manifest(Path(json.loads(printed)["calibration"])) or {}
    account = manifest["account"]
    assert account["distinct_documents"] == 1
    assert account["documents_read"] == account["windows"] == 6
    assert account["distinct_windows"] <= 5
    assert "documents read from" in " ".join(manifest["warnings"])
    assert f"Of 6 documents read from '{path}' only 1 are distinct" in errors


def test_windows_of_a_repeated_document_are_counted():
    document = Document(tuple(range(10, 21)))  # eleven tokens and an end: windows of four repeat after three
    found = Packing(4, "concat", "none", None, 1, pool=3).pack([document] * 10, 9, 0, "x")
    assert found.account["distinct_windows"] == 3
    assert found.account["windows"] == 9
    assert found.account["distinct_documents"] == 1
    first, second = warnings_of({"x": found.account}, False)
    assert "Of 9 samples from 'x' only 3 are distinct" in first
    assert "Of 9 documents read from 'x' only 1 are distinct" in second


def test_a_source_as_it_should_be_has_no_warnings(run, llama, tmp_path):
    for source in ("prose", "self"):
        code, _, errors = run("generate", llama, *SMALL, "--calibration", source, "--out", tmp_path / source)
        assert code == 0
        assert "note:" not in errors
        assert (read_manifest(tmp_path / source) or {})["warnings"] == []


def test_one_prefix_for_all_generations_is_worth_a_note(run, llama, tmp_path):
    path = lines(tmp_path / "one.jsonl", *[{"text": "the quick brown"}] * 5)
    sets = ["--set", f"calibration.generation.prefixes={path}", "--set", "calibration.generation.batch_size=4"]
    code, _, errors = run("generate", llama, *SMALL, *sets, "--out", tmp_path / "set")
    assert code == 0, errors
    manifest = read_manifest(tmp_path / "set") or {}
    assert manifest["account"]["distinct_prompts"] == 1
    assert any("start from only 1 distinct prompts" in warning for warning in manifest["warnings"])
    assert "start from only 1 distinct prompts" in errors
    code, _, errors = run("generate", llama, *SMALL, "--set", "calibration.generation.prefix_tokens=0")
    assert code == 0, errors
    assert "distinct prompts" not in errors  # the begin token alone is one prompt, as asked


# Tokenizers and models


def without_bos(folder: Path) -> Path:
    save_model(CONFIGS["llama"](), folder)
    plain = tiny_tokenizer().backend_tokenizer
    plain.post_processor = None
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("packing", ["concat", "document", "whole", "paper", "paper-joined"])
def test_a_tokenizer_without_a_begin_token(run, text_file, tmp_path, packing):
    model = without_bos(tmp_path / "model")
    sets = ["--set", f"calibration.packing={packing}", "--calibration", text_file]
    code, _, errors = run("generate", model, *SMALL, *sets, "--out", tmp_path / "set")
    assert code == 0, errors
    samples = [json.loads(line)["token_ids"] for line in (tmp_path / "set" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 6
    assert all(0 not in sample for sample in samples)
    code, _, errors = run("generate", model, *SMALL, *sets, "--set", "calibration.bos=document")
    assert code == 2
    assert "has no begin token" in errors or "leave calibration.bos at auto" in errors


def test_generation_without_a_begin_token(run, tmp_path):
    model = without_bos(tmp_path / "model")
    code, _, errors = run("generate", model, *SMALL, "--set", "calibration.generation.prefix_tokens=0")
    assert code == 2
    assert "no begin token to start from" in errors
    code, _, errors = run("generate", model, *SMALL)
    assert code == 0, errors


@pytest.fixture(scope="module")
def finished_set(llama, text_file, tmp_path_factory):
    place = tmp_path_factory.mktemp("finished") / "set"
    assert main(["generate", str(llama), *SMALL, "--calibration", str(text_file), "--out", str(place), "-q"]) == 0
    return place


def test_a_set_is_refused_by_a_model_with_a_smaller_vocabulary(run, finished_set, llama, tmp_path):
    config = CONFIGS["llama"]()
    config.vocab_size = 60
    model = save_model(config, tmp_path / "small")
    code, _, errors = run("prune", model, "--calibration", finished_set, "--set", "evaluation.enabled=false")
    assert code == 2
    assert f"was made for {llama} (a vocabulary of 300) and holds the token" in errors
    assert f"but {model} has only 60 tokens" in errors


def test_a_set_is_refused_by_a_model_with_another_tokenizer(run, finished_set, llama, tmp_path):
    model = tmp_path / "other"
    shutil.copytree(llama, model)
    saved = json.loads((model / "tokenizer.json").read_text())
    ids = saved["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (model / "tokenizer.json").write_text(json.dumps(saved))
    command = ["--calibration", finished_set, "--set", "evaluation.enabled=false", "-q"]
    code, _, errors = run("prune", model, *command)
    assert code == 2
    assert f"was made for {llama} (a vocabulary of 300), whose tokenizer is another than that of {model}" in errors
    # Saved anew in another form it is the same tokenizer; and a set that does not say which it was is taken at its word.
    saved["model"]["vocab"] |= {"a": ids["b"], "b": ids["a"]}
    (model / "tokenizer.json").write_text(json.dumps(saved, indent=3))
    assert run("prune", model, *command)[0] == 0


def test_a_set_that_names_no_tokenizer_is_taken(run, finished_set, llama, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(finished_set, old)
    manifest = json.loads((old / "manifest.json").read_text())
    assert len(manifest.pop("tokenizer")) == 64
    del manifest["vocabulary"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert run("prune", llama, "--calibration", old, "--set", "evaluation.enabled=false", "-q")[0] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "became NaN or infinite while it was generating"),
        (["--set", "calibration.filters=[perplexity]", "--calibration", "TEXT"], "not finite on this text"),
    ],
)
def test_a_model_whose_outputs_are_not_finite(run, tmp_path, text_file, settings, words):
    model = save_model(CONFIGS["llama"](), tmp_path / "nan")
    checkpoint = Checkpoint(model)
    checkpoint.patch({"lm_head.weight": torch.full_like(checkpoint.read("lm_head.weight"), float("nan"))})
    flags = [text_file if flag == "TEXT" else flag for flag in settings]
    code, printed, errors = run("generate", model, *SMALL, *flags, "--out", tmp_path / "set")
    assert code == 2
    assert printed == ""
    assert words in errors
    assert not (tmp_path / "set").exists()


@dataclass(frozen=True)
class Nothing(Filter):
    """Drops everything."""

    def judge(self, samples, context):
        return [Verdict(False, 1.0, "is not wanted") for _ in samples]


@pytest.mark.parametrize("source", ["self", "TEXT"])
def test_filters_that_drop_everything(run, llama, text_file, tmp_path, monkeypatch, source):
    monkeypatch.setitem(FILTERS._builtins, "nothing", Entry("nothing", f"{__name__}:Nothing", "Drops everything."))
    flags = ["--calibration", text_file if source == "TEXT" else source, "--set", "calibration.filters=[nothing]"]
    flags += [*SMALL, "--set", "calibration.generation.batch_size=256"]
    code, _, errors = run("generate", llama, *flags, "--out", tmp_path / "set", "-q")
    assert code == 2
    assert "is not wanted" in errors
    assert "filters kept 0 of 6 windows" in errors if source == "TEXT" else "filters drop them" in errors
    assert not (tmp_path / "set").exists()
