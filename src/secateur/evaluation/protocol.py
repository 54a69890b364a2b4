"""Named perplexity protocols: how text becomes windows, and how losses become one number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.begin import BeginToken, Choice, settle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Protocol:
    """``concat-N`` (``window`` N) or ``document`` (``window`` ``None``), or one of these under a ``name`` (``PROTOCOLS``).

    ``concat-N``: all texts joined by a blank line, tokenised once, cut into windows of N tokens without overlap, the
    tail dropped; perplexity is exp of the mean loss over windows. The SparseGPT and Wanda programs' way, N = 2048. Where a
    begin token stands in every window, it is one of the N, and no text is lost: N - 1 tokens of it go into each.
    ``document``: each text by itself; perplexity is the mean over texts of exp(loss of the text). The paper's way for
    Alpaca. Texts longer than the model's positions are cut there, and counted.

    ``first``: only so many texts, from the beginning. ``text``, ``split``: where a named protocol's text is, by default.
    """

    window: int | None = None
    name: str = ""
    first: int | None = None
    text: str | None = None
    split: str = "test"

    def __str__(self) -> str:
        return self.name or (f"concat-{self.window}" if self.window else "document")

    @property
    def joined(self) -> bool:
        """Whether texts are joined and cut into windows."""
        return self.window is not None

    def begin(self, choice: Choice, tokenizer: PreTrainedTokenizerBase, cut_anywhere: bool = False) -> BeginToken:
        """Where the begin token stands when ``choice`` is asked for (``settle``); the protocols of a name are published."""
        return settle(choice, tokenizer, self.joined, bool(self.name), cut_anywhere)


PROTOCOLS = {
    "wikitext2": Protocol(2048, "wikitext2", text="wikitext2"),
    "alpaca": Protocol(None, "alpaca", 10_000, "corpus:vicgalle/alpaca-gpt4", "train"),
}
"""The perplexities of the paper's program (arXiv 2410.17711): WikiText-2's test split as ``concat-2048``; the first 10,000
Alpaca instructions with GPT-4's answers, each a whole text, as ``document``."""


def parse_protocol(text: str) -> Protocol:
    """``document``, ``concat-N`` with N >= 2, or a name in ``PROTOCOLS``. Raises ``UsageError`` otherwise."""
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    if text == "document":
        return Protocol()
    match = re.fullmatch(r"concat-(\d+)", text)
    if not match or int(match[1]) < 2:
        raise UsageError(
            f"There is no perplexity protocol {text!r}; known: 'concat-N' (such as 'concat-2048'), 'document', and by name "
            f"{', '.join(sorted(PROTOCOLS))}."
        )
    return Protocol(int(match[1]))


def said(perplexity: Mapping[str, Any]) -> str:
    """The protocol of a measured perplexity, and where the begin token stood: ``concat-512, begin token in every window``.
    Scores from before that was recorded have the protocol alone."""
    name = perplexity["protocol"]
    return f"{name}, {placed(place, parse_protocol(name))}" if (place := perplexity.get("bos")) else name


def placed(place: str, protocol: Protocol) -> str:
    """Where the begin token stands, in words."""
    if place == "none":
        return "no begin token"
    if not protocol.joined:
        return "begin token in every document"
    return "begin token in every window" if place == "every" else "begin token in the first window only"


@dataclass(frozen=True)
class EvaluationText:
    """The token sequences of a protocol, how many texts had to be cut, and where the begin token stands in them."""

    sequences: tuple[tuple[int, ...], ...]
    cut: int = 0
    begin: BeginToken | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def tokenise(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    positions: int | None = None,
    limit: int | None = None,
    begin: BeginToken | None = None,
) -> EvaluationText:
    """The sequences ``protocol`` makes of ``texts``. ``begin``: where the begin token stands; ``None``: special tokens are
    those that the tokenizer itself adds.

    ``limit``: at most so many windows or documents, evenly spread over the text. Raises ``CalibrationError`` when there are none,
    ``UsageError`` when the window is larger than the model's ``positions``.
    """
    texts = texts[: protocol.first]
    begin = begin or protocol.begin("first", tokenizer)
    if protocol.window is not None:
        if positions and protocol.window > positions:
            raise UsageError(
                f"The protocol {protocol} needs {protocol.window} positions, but the model was made for {positions}; "
                f"use concat-{positions}."
            )
        return EvaluationText(tuple(_windows(texts, tokenizer, protocol.window, limit, begin)), begin=begin)
    sequences, cut = [], 0
    for index in _spread(len(texts), limit):
        ids = _with_begin(texts[index], tokenizer, begin)
        cut += bool(positions and len(ids) > positions)
        if len(ids) >= 2:
            sequences.append(tuple(ids[:positions]))
    if not sequences:
        raise CalibrationError("The evaluation text has no document of at least 2 tokens.")
    return EvaluationText(tuple(sequences), cut, begin)


def _windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, window: int, limit: int | None, begin: BeginToken
) -> list[tuple[int, ...]]:
    ids, first = _with_begin(SEPARATOR.join(texts), tokenizer, begin), ()
    if begin.place == "every":
        first = tuple(ids[:1])
        while tuple(ids[:1]) == first:  # a text that begins with it in writing
            ids = ids[1:]
    size = window - len(first)
    count = len(ids) // size
    if not count:
        own = ", its begin token included" if first else ""
        raise CalibrationError(f"The evaluation text has {len(ids)} tokens, fewer than one window of {window}{own}.")
    return [first + tuple(ids[index * size : (index + 1) * size]) for index in _spread(count, limit)]


def _with_begin(text: str, tokenizer: PreTrainedTokenizerBase, begin: BeginToken) -> list[int]:
    """The tokens of a text, with the special ones that the tokenizer adds unless ``begin`` says otherwise."""
    if begin.place == "none":
        return tokenizer.encode(text, add_special_tokens=False)
    ids = tokenizer.encode(text)
    return ids if begin.token is None or ids[:1] == [begin.token] else [begin.token, *ids]


def _spread(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` of ``count`` indices, evenly spaced from the first on."""
    chosen = count if limit is None else min(count, limit)
    return [index * count // chosen for index in range(chosen)]
