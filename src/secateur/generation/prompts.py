"""Prompts: the first few tokens of any text."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from secateur.calibration.sources.base import TextSource, Tokenizer
from secateur.errors import CalibrationError, UsageError

Unit = Literal["paragraph", "document"]
"""What a prefix is taken from: the start of every paragraph (a small source gives many prefixes), or of every
document (the paper's way)."""

CHARACTERS_A_TOKEN = 32
PREFIXES_AT_MOST = 20_000


def prefixes(
    source: TextSource, tokenizer: Tokenizer, tokens: int, unit: Unit, bos: int | None, seed: int
) -> Iterator[list[int]]:
    """Prompts of exactly ``tokens`` tokens each after ``bos`` (if any), in an order drawn by ``seed``, over and over.

    A text with fewer tokens is passed over. ``tokens`` 0 gives the begin token alone. Raises ``CalibrationError`` when
    no text has enough tokens, ``UsageError`` when there is neither a prefix nor a begin token.
    """
    first = [] if bos is None else [bos]
    if tokens < 0 or (not first and tokens == 0):
        raise UsageError(
            f"A prompt of {tokens} tokens was asked for, but this model has no begin token to start from; "
            "set calibration.generation.prefix_tokens to at least 1."
        )
    if tokens == 0:
        return itertools.repeat(first)
    return _cycle(source, tokenizer, tokens, unit, first, seed)


def weighted(streams: Sequence[tuple[Iterator[list[int]], float]]) -> Iterator[list[int]]:
    """The next prompt of one stream after another, in proportion to their weights as evenly as can be.

    At each step the stream goes next that is furthest behind its share. Raises ``UsageError`` when a weight is not
    positive.
    """
    weights = [weight for _, weight in streams]
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"The weights of prefix sources are positive numbers; found {weights}.")
    if len(streams) == 1:
        return streams[0][0]
    return _in_turn([stream for stream, _ in streams], [weight / sum(weights) for weight in weights])


def _in_turn(streams: list[Iterator[list[int]]], shares: list[float]) -> Iterator[list[int]]:
    given = [0] * len(streams)
    for number in itertools.count(1):
        behind = [share * number - count for share, count in zip(shares, given, strict=True)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
        yield next(streams[chosen])


def _cycle(
    source: TextSource, tokenizer: Tokenizer, tokens: int, unit: Unit, first: list[int], seed: int
) -> Iterator[list[int]]:
    starts: list[str] = []
    for _, text in source.shuffled(seed):
        # Only the beginning will be tokenised: enough characters that its first tokens are those of the whole text.
        parts = [text] if unit == "document" else _paragraphs(text)
        starts += [part[: (tokens + 4) * CHARACTERS_A_TOKEN] for part in parts]
        if len(starts) >= PREFIXES_AT_MOST:
            break
    random.Random(seed).shuffle(starts)
    found = 0
    for round_number in itertools.count():
        for start in starts:
            ids = tokenizer.encode(start, add_special_tokens=False)[:tokens]
            if len(ids) == tokens:
                found += 1
                yield first + ids
        if round_number == 0 and not found:
            raise CalibrationError(
                f"No {unit} of the prefix source {source.name!r} has {tokens} tokens; take a shorter prefix "
                "(calibration.generation.prefix_tokens) or longer texts (calibration.generation.prefix_unit=document)."
            )


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]
