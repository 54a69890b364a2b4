"""Corpora by name, from the Hub and from local copies."""

from __future__ import annotations

import gzip
import inspect
import itertools
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import tiny_tokenizer
from secateur.calibration.sources import SOURCES
from secateur.calibration.sources.corpus import SHUFFLE_BUFFER, CorpusSource
from secateur.calibration.sources.formats import Chat, Column, Instruction, QuestionAnswer
from secateur.calibration.sources.presets import PRESETS
from secateur.calibration.sources.resolve import resolve_source, resolve_text_source
from secateur.cli.main import main
from secateur.errors import CalibrationError, UnknownNameError, UsageError
from secateur.pipeline.store import read_manifest

CORPORA = "SECATEUR_CORPORA"


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def texts_of(source) -> list[str]:
    return [text for _, text in source.texts()]


@pytest.fixture(autouse=True)
def _no_copies(monkeypatch):
    monkeypatch.delenv(CORPORA, raising=False)


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set, ``hub.rows``; the calls that read it are kept, and checked against the real signature."""

    class Hub:
        rows = [{"text": f"document {number}", "url": "x"} for number in range(30)]  # noqa: RUF012
        calls: list[dict] = []  # noqa: RUF012
        error: Exception | None = None

    real = inspect.signature(datasets.load_dataset)
    Hub.calls = []

    def load_dataset(*args, **kwargs):
        bound = real.bind(*args, **kwargs)
        Hub.calls.append(dict(bound.arguments))
        if Hub.error:
            raise Hub.error
        return datasets.Dataset.from_list(Hub.rows).to_iterable_dataset(num_shards=min(3, len(Hub.rows)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return Hub


# Presets


def test_every_preset_is_listed_and_opens_by_its_name(capsys):
    assert main(["ls", "sources"]) == 0
    listed = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert f"\n{name} " in listed
        assert preset.summary in listed
        source = resolve_text_source(name)
        assert isinstance(source, CorpusSource)
        assert source.name.partition(":")[0] == preset.path
        assert source.paper_rule == preset.paper
        assert SOURCES.load(name)().fingerprint() == source.fingerprint()
        assert preset.revision is None or len(preset.revision) == 40
    assert len({folder for preset in PRESETS.values() for folder in (preset.name, *preset.folders)}) == sum(
        1 + len(preset.folders) for preset in PRESETS.values()
    )
    with pytest.raises(UnknownNameError, match="did you mean 'wikipedia'"):
        resolve_source("wikipedya")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_asks_the_hub_for_what_it_says(hub, name):
    preset = PRESETS[name]
    hub.rows = [
        {"text": "a", "instruction": "b", "input": "c", "output": "d", "context": "e", "response": "f"}
        | {"question": "g", "answer": "h", "content": "i", "TEXT": "j"}
        | {"messages": [{"role": "user", "content": "k"}]}
    ]
    (text,) = texts_of(resolve_text_source(name))
    assert text == preset.format.text(hub.rows[0])
    (call,) = hub.calls
    if preset.files is None:
        expected = {"path": preset.path, "name": preset.subset, "split": preset.train, "revision": preset.revision}
        assert call == expected | {"streaming": True}
    else:
        assert call["path"] == "json"
        assert call["data_files"] == {preset.train: f"hf://datasets/{preset.path}/{preset.files}"}
        assert call["split"] == preset.train


def test_split_revision_and_text_key_of_a_recipe_reach_the_hub(hub):
    assert texts_of(resolve_text_source("c4", split="test"))[0] == "document 0"
    assert hub.calls[-1]["split"] == "validation"
    hub.rows = [{"body": "other", "text": "usual"}]
    assert texts_of(resolve_text_source("c4", "body", "validation.x", "abc")) == ["other"]
    assert (hub.calls[-1]["split"], hub.calls[-1]["revision"]) == ("validation.x", "abc")
    assert texts_of(resolve_text_source("redpajama", revision="abc")) == ["usual"]
    assert "@abc/*_sample.jsonl" in hub.calls[-1]["data_files"]["train"]
    fingerprints = {
        resolve_source("c4", *given).fingerprint()
        for given in [(), ("body",), ("text", "test"), ("text", "train", "abc")]
    }
    assert len(fingerprints) == 4
    with pytest.raises(UsageError, match="'fineweb' has no held-out split on the Hub"):
        resolve_source("fineweb", split="test")


def test_a_stream_is_shuffled_by_the_seed(hub):
    source = resolve_text_source("c4")
    orders = [[text for _, text in source.shuffled(seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(texts_of(source))
    expected = datasets.Dataset.from_list(hub.rows).to_iterable_dataset(num_shards=3)
    assert orders[0] == [row["text"] for row in expected.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)]
    assert [text for _, text in source.paper_texts(0)] == orders[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"body": "x"}], "no text column 'text' \\(found the keys body\\)"),
        ([{"text": "x"}, {"text": None}], "found NoneType there"),
        ([{"text": 3}], "found int there"),
    ],
)
def test_a_stream_without_the_text_says_what_is_there(hub, rows, words):
    hub.rows = rows
    with pytest.raises(CalibrationError, match=words):
        list(resolve_text_source("c4").shuffled(0))
    with pytest.raises(CalibrationError, match="'question' with 'answer'"):
        list(resolve_text_source("gsm8k").shuffled(0))


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Unknown split"), RuntimeError("scripts")])
def test_a_hub_that_fails_is_a_sentence(hub, error):
    hub.error = error
    with pytest.raises(CalibrationError, match=f"split 'train'.*{type(error).__name__}.*SECATEUR_CORPORA"):
        next(resolve_text_source("wikipedia").shuffled(0))


def test_an_error_in_the_middle_of_a_stream_is_a_sentence(hub, monkeypatch):
    class Broken:
        def shuffle(self, seed=None, buffer_size=1000):
            return self

        def __iter__(self):
            yield {"text": "one"}
            raise TimeoutError("the line went dead")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    stream = resolve_text_source("c4").shuffled(0)
    assert next(stream)[1] == "one"
    with pytest.raises(CalibrationError, match="TimeoutError: the line went dead"):
        next(stream)


@pytest.mark.parametrize(
    ("form", "row", "text"),
    [
        (Column("body"), {"body": "x"}, "x"),
        (Column("body"), {"text": "x"}, None),
        (
            Instruction(),
            {"instruction": "Add.", "input": "1 2\n", "output": "3"},
            "Task:\nAdd.\n\nGiven:\n1 2\n\nAnswer:\n3",
        ),
        (Instruction(), {"instruction": "Add.", "input": "", "output": "3"}, "Task:\nAdd.\n\nAnswer:\n3"),
        (Instruction(), {"instruction": "Add.", "output": 3}, None),
        (QuestionAnswer(), {"question": "Q?", "answer": "A"}, "Question: Q?\nAnswer: A"),
        (QuestionAnswer(), {"question": "Q?"}, None),
        (
            Chat(),
            {"messages": [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "Ho"}]},
            "User: Hi\n\nAssistant: Ho",
        ),
        (Chat(), {"messages": []}, None),
        (Chat(), {"messages": "Hi"}, None),
        (Chat(), {"messages": [{"role": "user"}]}, None),
    ],
)
def test_how_a_row_becomes_text(form, row, text):
    assert form.text(row) == text


# Local copies


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder of local copies: two of one text each, one with other columns, one of evaluation files only."""
    root = tmp_path / "corpora"
    write_lines(root / "c4" / "train.jsonl.gz", [{"text": "train"}])
    write_lines(root / "c4" / "heldout.jsonl.gz", [{"text": "held out"}])
    write_lines(root / "c4" / "test" / "part.jsonl", [{"text": "tested"}])
    write_lines(root / "math_gsm8k" / "train.jsonl", [{"question": "Q?", "answer": "A"}, {"text": "ready"}])
    write_lines(root / "wikitext2" / "test_raw.jsonl.gz", [{"text": "raw"}])
    write_lines(root / "wikitext2" / "valid_unk.jsonl.gz", [{"text": "unk"}])
    write_lines(root / "fineweb-edu.jsonl", [{"text": "one file"}])
    write_lines(root / "law" / "train.jsonl", [{"text": "law"}])
    pq.write_table(pa.table({"instruction": ["Do."], "context": [""], "response": ["Done."]}), root / "dolly.parquet")
    monkeypatch.setenv(CORPORA, str(root))
    return root


def test_a_local_copy_goes_before_the_hub(copies, hub):
    assert texts_of(resolve_source("c4")) == ["train"]
    assert texts_of(resolve_source("gsm8k")) == ["Question: Q?\nAnswer: A", "ready"]
    assert texts_of(resolve_source("fineweb-edu")) == ["one file"]
    assert texts_of(resolve_source("dolly")) == ["Task:\nDo.\n\nAnswer:\nDone."]
    assert texts_of(resolve_source("law")) == ["law"]
    assert resolve_source("gsm8k").paper_rule == "paper-joined"
    assert not hub.calls
    assert texts_of(resolve_source("wikipedia"))[0] == "document 0"
    assert len(hub.calls) == 1


def test_held_out_files_are_for_evaluation_alone(copies):
    assert texts_of(resolve_source("c4", split="heldout")) == ["held out"]
    assert texts_of(resolve_source("c4", split="test")) == ["held out"]
    assert texts_of(resolve_source("wikitext2", split="test")) == ["raw"]
    assert texts_of(resolve_source("wikitext2", split="validation")) == ["raw"]
    with pytest.raises(CalibrationError, match=r"has no file to calibrate on; it has test_raw.jsonl.gz, valid_unk"):
        texts_of(resolve_source("wikitext2"))
    with pytest.raises(CalibrationError, match="has no file to evaluate on"):
        texts_of(resolve_source("fineweb-edu", split="test"))
    with pytest.raises(UsageError, match="has the splits train and heldout, test, validation; found 'dev'"):
        resolve_source("c4", split="dev")


def test_a_local_copy_is_known_by_its_content(copies, monkeypatch):
    found = resolve_source("c4").fingerprint()
    assert found.startswith("local:")
    write_lines(copies / "c4" / "heldout.jsonl.gz", [{"text": "changed"}])
    assert resolve_source("c4").fingerprint() == found
    write_lines(copies / "c4" / "train.jsonl.gz", [{"text": "changed"}])
    assert resolve_source("c4").fingerprint() not in ("", found)
    monkeypatch.delenv(CORPORA)
    assert not resolve_source("c4").fingerprint().startswith("local:")
    monkeypatch.setenv(CORPORA, str(copies / "nowhere"))
    with pytest.raises(UsageError, match=r"names .*nowhere, which is no folder"):
        resolve_source("c4")


def test_a_named_corpus_in_the_digest_and_in_the_manifest(copies, llama, tmp_path, capsys):
    words = "the quick brown fox jumps over the lazy dog "
    write_lines(copies / "c4" / "train.jsonl.gz", [{"text": words * (4 + number)} for number in range(9)])
    write_lines(copies / "c4" / "heldout.jsonl.gz", [{"text": "HELD OUT " * 99}])
    code = main(
        [
            "generate",
            str(llama),
            "--calibration",
            "c4",
            "--samples",
            "5",
            "--length",
            "16",
            "--out",
            str(tmp_path / "set"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    manifest = read_manifest(tmp_path / "set") or {}
    assert manifest["spec"]["source_fingerprint"][0].startswith("local:")
    assert "HELD" not in (tmp_path / "set" / "samples.jsonl").read_text()
    code = main(["evaluate", str(llama), "--text", "c4", "--protocol", "concat-32", "--store", str(tmp_path), "-q"])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "starts"),
    [("wikipedia", ""), ("c4", ""), ("gsm8k", "Question: "), ("dolly", ""), ("books", ""), ("code", "")],
)
def test_the_corpora_beside_the_project(shared, monkeypatch, name, starts):
    monkeypatch.setenv(CORPORA, str(shared / "data" / "text"))
    train, heldout = resolve_text_source(name), resolve_text_source(name, split="heldout")
    first = {text for _, text in itertools.islice(train.texts(), 200)}
    assert all(text.startswith(starts) for text in first)
    assert not first & set(texts_of(heldout))
    assert name == "books" or next(iter(train.documents(tiny_tokenizer(), 0))).token_ids  # books: megabytes each
