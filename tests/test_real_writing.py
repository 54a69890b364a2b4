"""The script that shows what a real model writes: what it tells of texts is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import tiny_tokenizer
from secateur.calibration.sample import Sample
from test_styles import chat_tokenizer


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import real_writing

    return real_writing


def text_of(script, *ids: int, prompt: int = 0, perplexity: float = 9.0, reason: str = "", text: str = ""):
    return script.Text(Sample(ids, prompt, "eos"), text, perplexity, reason)


def test_what_cannot_be_seen_is_shown(script):
    assert (
        script.visible("a\tb \r\n c\x00\u200b\u00a0d  ")
        == "a\\u0009b \\u000d\n c\\u0000\\u200b\\u00a0d\N{MIDDLE DOT}\N{MIDDLE DOT}"
    )


def test_distinct_grams_leave_out_what_all_texts_begin_with(script):
    """After the common 9: 1 2 3 4 1 2 3 4 has 5 grams, 4 of them distinct; 1 2 3 4 5 has 2, one of them known."""
    texts = [text_of(script, 9, 9, 1, 2, 3, 4, 1, 2, 3, 4), text_of(script, 9, 9, 5, 1, 2, 3, 4)]
    within, over_all = script.distinct_grams(texts)
    assert within == pytest.approx((4 / 5 + 1) / 2)
    assert over_all == pytest.approx(5 / 7)


def test_what_a_template_gives_is_not_counted_as_written(script):
    tokenizer = chat_tokenizer()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "lazy dog"}], add_generation_prompt=True, return_dict=False
    )
    question = tokenizer.encode("lazy dog", add_special_tokens=False)
    chat = text_of(script, *asked, 70, 1, prompt=len(asked))
    assert len(chat.sample.token_ids) - script.given_by_template("chat", chat, tokenizer) == len(question) + 2
    assert script.given_by_template("paper", text_of(script, 5, 6, 7, prompt=2), tiny_tokenizer()) == 2


def test_texts_to_read_are_marked_and_dropped_ones_are_among_them(script):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("the fox jumps", add_special_tokens=False)
    texts = [text_of(script, *ids, prompt=1, perplexity=3.0, reason=reason) for reason in ("", "perplexity: too high")]
    page = script.shown_texts("paper", script.marked(texts, tokenizer), 0)
    start, rest = tokenizer.decode(ids[:1]), tokenizer.decode(ids[1:])
    assert page.count(f"{start}{script.GIVEN}{rest}") == 2
    assert "kept, perplexity 3.0" in page
    assert "dropped, perplexity 3.0" in page
