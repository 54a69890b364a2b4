"""The token that a tokenizer puts before a text, and token sequences as they are scored: after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"


def tokens_before(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself: seen in what it does, since what it says of itself
    (``add_bos_token``, ``bos_token_id``) may be missing or wrong."""
    call: Any = tokenizer
    whole, plain = list(call(PROBE)["input_ids"]), list(call(PROBE, add_special_tokens=False)["input_ids"])
    own = [tokenizer.bos_token_id]
    if plain and plain[:1] != own:
        starts = range(len(whole) - len(plain) + 1)
        found = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
        return tuple(whole[:found])
    # It does not know the probe, or puts the begin token even where none is asked for.
    return tuple(whole[:1]) if whole[:1] == own else ()


def begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The begin token, if the tokenizer puts one, and nothing else, before a text by itself."""
    found = tokens_before(tokenizer)
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Begin:
    """How token sequences are scored under a model. ``token``: what its tokenizer puts before a text by itself, ``None``
    for nothing; ``positions``: what the model was made for.

    Where there is such a token, the model has hardly ever read text without it, and what it makes of such text says
    little (Gemma's perplexity is several times as high). So a sequence that lacks it is scored after it.
    """

    token: int | None
    positions: int | None = None

    def begins(self, ids: Sequence[int]) -> bool:
        """Whether ``ids`` are scored as they are."""
        return self.token is None or (len(ids) > 0 and ids[0] == self.token)

    def before(self, ids: Sequence[int]) -> tuple[int, ...]:
        """``ids`` after the begin token, unless they begin with it, so that the tokens after the first are those that
        count. Of a sequence that then passes the model's positions the last token is left out."""
        if self.begins(ids) or self.token is None:
            return tuple(ids)
        return (self.token, *ids)[: self.positions]
