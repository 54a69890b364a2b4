"""Sources: files of every kind, the bundled texts, and what each bad file gets."""

from __future__ import annotations

import gzip
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import tiny_tokenizer
from secateur.calibration.sources import SOURCES
from secateur.calibration.sources.files import FileSource
from secateur.calibration.sources.python_texts import (
    Prose,
    ProseHeldout,
    ProseTrain,
    SitePackages,
    StdlibHeldout,
    StdlibTrain,
    split_of,
)
from secateur.calibration.sources.random_tokens import RandomTokens
from secateur.calibration.sources.resolve import resolve_source, resolve_text_source
from secateur.errors import CalibrationError, UnknownNameError, UsageError

TEXTS = ["one\nline", "zwei \u00e4", "three"]


def test_every_kind_of_file_gives_the_same_texts(tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(lines)
    pq.write_table(pa.table({"text": TEXTS, "other": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert [text for _, text in FileSource(tmp_path / name).texts()] == TEXTS
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    assert [text for _, text in FileSource(folder).texts()] == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2, is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "no text under the key 'text' \\(found the keys body\\)"),
        ("a.jsonl", b"[1]\n", "found list"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.txt", b"ok \xff\xfe", "is not UTF-8 text \\(byte 3"),
        ("a.txt", b"", "holds no text"),
        ("a.jsonl.gz", b"not gzip", "is not a whole gzip file"),
        ("a.parquet", b"PAR?", "is not a parquet file"),
        ("a.bin", b"x", "is of no kind that can be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=words):
        list(FileSource(tmp_path / name).shuffled(0))


def test_a_file_that_is_not_there():
    with pytest.raises(CalibrationError, match="There is no file or folder"):
        list(FileSource("nowhere.jsonl").texts())


def test_a_parquet_file_without_the_column(tmp_path):
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(CalibrationError, match="found the keys body"):
        list(FileSource(tmp_path / "a.parquet").texts())
    assert len(list(FileSource(tmp_path / "a.parquet", "body").texts())) == 3


def test_names_files_and_corpora_are_told_apart(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert resolve_source("prose").name == "prose"
    assert isinstance(resolve_source(str(tmp_path / "a.txt")), FileSource)
    assert isinstance(resolve_source(f"file:{tmp_path}"), FileSource)
    assert resolve_source("org/name:subset").name == "org/name:subset"
    assert resolve_source("corpus:c4").name == "c4"
    with pytest.raises(UnknownNameError, match="did you mean 'prose'"):
        resolve_source("prosa")
    with pytest.raises(UsageError, match="write corpus:ORG/NAME"):
        resolve_source("corpus")
    with pytest.raises(UsageError, match="Text is needed here"):
        resolve_text_source("random-tokens")


@pytest.mark.filterwarnings("ignore")
def test_a_corpus_that_cannot_be_reached_says_what_to_do_instead():
    with pytest.raises(CalibrationError, match="offline, give a local file"):
        next(iter(resolve_text_source("no-such-org/no-such-set").shuffled(0)))


def test_the_split_of_the_library_is_by_path_and_leaks_nothing():
    train, heldout = dict(StdlibTrain().texts()), dict(StdlibHeldout().texts())
    assert train
    assert heldout
    assert not train.keys() & heldout.keys()
    assert not set(train.values()) & set(heldout.values())
    assert all(split_of(path) == "heldout" for path in heldout)
    assert split_of("ast.py") == split_of("ast.py")
    assert 0.02 < len(heldout) / (len(train) + len(heldout)) < 0.1
    assert not any("pydoc_data" in path or "site-packages" in path for path in train)


def test_the_sides_of_the_prose_are_all_of_it_and_share_no_paragraph():
    train, heldout = dict(ProseTrain().texts()), dict(ProseHeldout().texts())
    assert train | heldout == dict(Prose().texts())
    assert not train.keys() & heldout.keys()
    assert sum(map(len, heldout.values())) > 50_000
    known = " ".join(" ".join(train.values()).split())
    parts = (" ".join(part.split()) for text in heldout.values() for part in text.split("\n\n"))
    assert not [part for part in parts if len(part) >= 60 and part in known]


def test_the_other_bundled_texts_are_there():
    assert sum(len(text) for _, text in Prose().texts()) > 300_000
    assert sum(len(text) for _, text in itertools.islice(SitePackages().texts(), 50)) > 50_000


def test_random_tokens_have_no_special_ones_and_repeat_by_seed():
    tokenizer = tiny_tokenizer()
    first, again, other = (next(RandomTokens().documents(tokenizer, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert not set(first.token_ids) & set(tokenizer.all_special_ids)
    assert not first.ended


def test_the_order_of_documents_is_decided_by_the_seed(text_file):
    source = FileSource(text_file)
    order = [[origin for origin, _ in source.shuffled(seed)] for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2])


def test_sources_are_listed_with_what_their_docstrings_say():
    for name in ("random-tokens", "stdlib-train", "stdlib-heldout", "site-packages", "prose-train", "prose-heldout"):
        summary = SOURCES.entries()[name].summary
        assert (SOURCES.load(name).__doc__ or "").startswith(summary)
