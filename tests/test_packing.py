"""Packing: the same two rules for every source, and a shortfall that is always an error."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ScriptedContext
from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.calibration.packing import Document, Packing
from secateur.calibration.sample import Sample, read_samples, write_samples
from secateur.calibration.sources import base
from secateur.calibration.sources.base import Texts
from secateur.errors import CalibrationError, UsageError

BOS, EOS = 0, 1


def documents(*lengths: int, ended: bool = True) -> list[Document]:
    """Documents whose tokens are all different, so that positions can be told."""
    found, start = [], 10
    for number, length in enumerate(lengths):
        found.append(Document(tuple(range(start, start + length)), ended, f"doc{number}"))
        start += length
    return found


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=5, max_size=30),
    length=st.integers(2, 16),
    policy=st.sampled_from(["none", "sample", "document"]),
    seed=st.integers(0, 99),
)
def test_concat_cuts_windows_that_do_not_overlap(lengths, length, policy, seed):
    packing = Packing(length, "concat", policy, BOS, EOS)
    samples = max(1, sum(lengths) // length // 2 - 1)
    found = packing.pack(documents(*lengths), samples, seed, "test").samples
    assert len(found) == samples
    assert all(len(sample.token_ids) == length for sample in found)
    real = [token for sample in found for token in sample.token_ids if token >= 10]
    assert len(real) == len(set(real))
    if policy == "sample":
        assert all(sample.token_ids[0] == BOS and BOS not in sample.token_ids[1:] for sample in found)
    if policy == "none":
        assert all(BOS not in sample.token_ids for sample in found)


def test_an_end_token_stands_only_after_whole_documents():
    whole = Packing(12, "concat", "none", BOS, EOS).pack(documents(5, 5), 1, 0, "test").samples[0]
    assert whole.token_ids == (*range(10, 15), EOS, *range(15, 20), EOS)
    cut = Packing(10, "concat", "none", BOS, EOS).pack(documents(5, 5, ended=False), 1, 0, "test").samples[0]
    assert cut.token_ids == tuple(range(10, 20))


def test_document_takes_one_window_of_each_long_document():
    packing = Packing(10, "document", "none", None, None)
    found = packing.pack(documents(5, 30, 9, 10, 40), 3, 0, "test")
    assert [sample.origin for sample in found.samples] == ["doc1", "doc3", "doc4"]
    assert found.account["documents_too_short"] == 2
    for sample in found.samples:
        assert list(sample.token_ids) == list(range(sample.token_ids[0], sample.token_ids[0] + 10))


@pytest.mark.parametrize("rule", ["concat", "document"])
def test_a_shortfall_is_an_error_with_the_counts(rule):
    packing = Packing(10, rule, "none", None, EOS)
    with pytest.raises(
        CalibrationError, match=r"9 samples of 10 tokens were asked of 'few', but it yields \d: 3 documents read"
    ):
        packing.pack(documents(12, 4, 25), 9, 0, "few")


def test_the_seed_decides_the_draw():
    packing = Packing(8, "concat", "none", None, None)
    first, again, other = (packing.pack(documents(*[20] * 30), 6, seed, "test") for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest


def test_the_pool_bounds_what_is_read():
    read = []

    def stream():
        for document in documents(*[50] * 100):
            read.append(document)
            yield document

    Packing(10, "concat", "none", None, None, pool=2).pack(stream(), 5, 0, "test")
    assert len(read) == 5


def test_no_long_text_takes_the_place_of_others():
    """A generated file of a package once gave all windows of a set, and cost the pruned model a third of its perplexity."""
    packing = Packing(10, "concat", "none", None, None, pool=2)
    found = packing.pack(documents(10_000, *[15] * 3, 10_000, *[15] * 20), 5, 0, "test").samples
    assert len({sample.origin for sample in found}) >= 3
    several = [packing.pack(documents(*[1000] * 5), 5, seed, "test").samples for seed in range(20)]
    assert all(Counter(sample.origin for sample in one).most_common(1)[0][1] <= 2 for one in several)
    starts = {min(token for sample in one for token in sample.token_ids) % 1000 for one in several}
    assert len(starts) > 10, "the stretch of a long text is drawn by the seed"


def test_a_text_in_parts_is_drawn_from_as_the_same_text_whole():
    """Books of millions of characters are tokenised in parts; one part once gave 24 of 32 windows."""
    packing = Packing(10, "concat", "sample", BOS, EOS, pool=2)
    whole = documents(15, 4000, 30, 4000, *[15] * 20)
    for seed in range(5):
        parted = [part for document in whole for part in in_parts(document, 400)]
        assert packing.pack(parted, 5, seed, "test").samples == packing.pack(whole, 5, seed, "test").samples
    few = documents(15, 4000, *[15] * 20)
    parted = [part for document in few for part in in_parts(document, 400)]
    found = Counter(sample.origin for sample in packing.pack(parted, 8, 0, "test").samples)
    assert found["doc1"] <= packing.pool


def in_parts(document: Document, size: int) -> list[Document]:
    ids = document.token_ids
    starts = range(0, len(ids), size)
    return [
        replace(
            document, token_ids=ids[at : at + size], ended=at + size >= len(ids), begun=at == 0, part=len(starts) > 1
        )
        for at in starts
    ]


def test_of_a_long_text_no_more_is_tokenised_than_a_set_can_take(monkeypatch):
    monkeypatch.setattr(base, "PIECE", 100)
    texts, read = Texts("books", [("a", "one two three " * 500), ("b", "four five six " * 500)]), []

    class Words:
        def encode(self, text, add_special_tokens):
            read.append(text)
            return [len(word) for word in text.split()]

    packing = Packing(10, "concat", "none", None, None, pool=2)
    packing.pack(texts.for_rule("concat", Words(), 0, packing.pool_tokens(3)), 3, 0, "books")
    assert len(read) == 2 * math.ceil(packing.pool_tokens(3) / 20)  # of both, though either has enough
    read.clear()
    list(texts.for_rule("document", Words(), 0, 60))
    assert len(read) > 100


@pytest.mark.parametrize("lengths", [[1000], [3, 1000, 5], [40, 400, 400]])
def test_long_texts_give_what_the_source_has_no_others_for(lengths):
    packing = Packing(10, "concat", "none", None, None, pool=2)
    drawn = {token for seed in range(200) for one in packing.pack(documents(*lengths), 8, seed, "test").samples
             for token in one.token_ids}  # fmt: skip
    assert max(drawn) - min(drawn) > 0.9 * sum(lengths)


def test_a_stream_without_end_is_taken_as_it_comes():
    packing = Packing(10, "concat", "none", None, None, pool=2)
    found = packing.pack(documents(100, 100, ended=False), 5, 0, "random-tokens")
    assert {sample.origin for sample in found.samples} == {"doc0"}


def samples_of(*perplexities: float) -> list[Sample]:
    import math

    return [Sample((1, 2, index), mean_logprob=-math.log(value)) for index, value in enumerate(perplexities)]


def test_the_perplexity_filter_drops_exactly_the_highest_share():
    verdicts = PerplexityFilter(0.2).judge(
        samples_of(*[5.0, 90.0, 7.0, 3.0, 80.0, 2.0, 9.0, 8.0, 6.0, 4.0]), ScriptedContext()
    )
    assert [index for index, verdict in enumerate(verdicts) if not verdict.keep] == [1, 4]
    assert verdicts[1].value == pytest.approx(90)
    assert "20%" in verdicts[1].reason
    assert sum(not v.keep for v in PerplexityFilter(0.2).judge(samples_of(*[3.0] * 9), ScriptedContext())) == 1
    assert all(v.keep for v in PerplexityFilter(0.0).judge(samples_of(1.0, 2.0), ScriptedContext()))


def test_the_perplexity_filter_wants_perplexities():
    with pytest.raises(CalibrationError, match="1 of 2 samples have no finite perplexity"):
        PerplexityFilter().judge([*samples_of(3.0), Sample((1, 2))], ScriptedContext())
    with pytest.raises(UsageError, match="at least 0 and below 1"):
        PerplexityFilter(drop=1.0)


def test_samples_are_read_back_as_they_were_written(tmp_path):
    samples = [Sample((0, 5, 6), 2, "eos", -1.25, "self"), Sample((7,), origin="a\u2028b")]
    write_samples(tmp_path / "s.jsonl", samples, ["x\ny", "\u2028"])
    assert read_samples(tmp_path / "s.jsonl") == samples
    with (tmp_path / "s.jsonl").open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(CalibrationError, match="line 3, is not a sample"):
        read_samples(tmp_path / "s.jsonl")
