"""A document: what sources give and packing cuts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text as tokens, without begin and end token. ``ended``: it is whole, so an end token may follow it.
    ``prompt_tokens``: how many of them the model was given rather than wrote. ``begun``: it is no later part of a text,
    so a begin token may stand before it. ``part``: it is a part of a text that is too long to be tokenised at once.
    ``end``: the token that the model ended it with, where that is known."""

    token_ids: tuple[int, ...]
    ended: bool = True
    origin: str = ""
    prompt_tokens: int = 0
    begun: bool = True
    part: bool = False
    end: int | None = None
