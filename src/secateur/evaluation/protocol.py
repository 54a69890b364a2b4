"""Named perplexity protocols: how text becomes windows, and how losses become one number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from secateur.errors import CalibrationError, UsageError

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Protocol:
    """``concat-N`` (``window`` N) or ``document`` (``window`` ``None``), or one of these under a ``name`` (``PROTOCOLS``).

    ``concat-N``: all texts joined by a blank line, tokenised once, cut into windows of N tokens without overlap, the
    tail dropped; perplexity is exp of the mean loss over windows. The SparseGPT and Wanda programs' way, N = 2048.
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


@dataclass(frozen=True)
class EvaluationText:
    """The token sequences of a protocol, and how many texts had to be cut."""

    sequences: tuple[tuple[int, ...], ...]
    cut: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def tokenise(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    positions: int | None = None,
    limit: int | None = None,
) -> EvaluationText:
    """The sequences ``protocol`` makes of ``texts``: special tokens as the tokenizer itself adds them.

    ``limit``: at most so many windows or documents, evenly spread over the text. Raises ``CalibrationError`` when there are none,
    ``UsageError`` when the window is larger than the model's ``positions``.
    """
    texts = texts[: protocol.first]
    if protocol.window is not None:
        if positions and protocol.window > positions:
            raise UsageError(
                f"The protocol {protocol} needs {protocol.window} positions, but the model was made for {positions}; "
                f"use concat-{positions}."
            )
        return EvaluationText(tuple(_windows(texts, tokenizer, protocol.window, limit)))
    sequences, cut = [], 0
    for index in _spread(len(texts), limit):
        ids = tokenizer(texts[index])["input_ids"]
        cut += bool(positions and len(ids) > positions)
        if len(ids) >= 2:
            sequences.append(tuple(ids[:positions]))
    if not sequences:
        raise CalibrationError("The evaluation text has no document of at least 2 tokens.")
    return EvaluationText(tuple(sequences), cut)


def _windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, window: int, limit: int | None
) -> list[tuple[int, ...]]:
    ids = tokenizer(SEPARATOR.join(texts))["input_ids"]
    count = len(ids) // window
    if not count:
        raise CalibrationError(f"The evaluation text has {len(ids)} tokens, fewer than one window of {window}.")
    return [tuple(ids[index * window : (index + 1) * window]) for index in _spread(count, limit)]


def _spread(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` of ``count`` indices, evenly spaced from the first on."""
    chosen = count if limit is None else min(count, limit)
    return [index * count // chosen for index in range(chosen)]
