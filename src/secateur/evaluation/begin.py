"""Where the begin token stands in the text of an evaluation: what a recipe asks for, settled for a tokenizer and a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from secateur.errors import UsageError
from secateur.models.begin import begin_token, tokens_before

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Choice = Literal["auto", "every", "first", "none"]
"""``every``: before every window or document. ``first``: where the tokenizer itself puts it, once before texts that are
joined (before each where they are not), as the published programs have it. ``none``: nowhere."""

Place = Literal["every", "first", "none"]


@dataclass(frozen=True)
class BeginToken:
    """``place``: where it stands; ``token``: what stands before every window, where something does. ``unlike``: whether
    ``auto`` would have had it in every window, were the protocol not a published one."""

    place: Place
    token: int | None = None
    unlike: bool = False

    @property
    def note(self) -> str:
        """A sentence for the scores; empty where there is nothing to say."""
        return UNLIKE if self.unlike else ""


UNLIKE = (
    "As in the published programs, the begin token stands before the first window only, though this tokenizer puts one before "
    "every text: the other windows may be harder for the model than text is that it is given. evaluation.bos=every has one "
    "before each."
)


def settle(
    choice: Choice,
    tokenizer: PreTrainedTokenizerBase,
    joined: bool,
    published: bool = False,
    cut_anywhere: bool = False,
) -> BeginToken:
    """Where the begin token stands when ``choice`` is asked for. ``joined``: texts are joined and cut into windows;
    ``published``: by a protocol that fixes the place; ``cut_anywhere``: the model was trained on windows without one.

    ``auto`` has it in every window if the tokenizer puts one before a text by itself, unless ``published`` or
    ``cut_anywhere``, where it is ``first``. A tokenizer that puts several tokens there has them before the first window.
    Raises ``UsageError`` when ``every`` is asked for and the tokenizer has no begin token.
    """
    own = begin_token(tokenizer)
    if choice == "every":
        return BeginToken("every", named_begin(tokenizer) if own is None else own)
    if choice == "none" or not tokens_before(tokenizer):
        return BeginToken("none")
    if own is None:
        return BeginToken("first")
    if not joined or (choice == "auto" and not published and not cut_anywhere):
        return BeginToken("every", own)
    return BeginToken("first", unlike=choice == "auto" and published and not cut_anywhere)


def put_by_hand(choice: Choice, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The begin token of ``every``, if the tokenizer does not put it before a text by itself."""
    return named_begin(tokenizer) if choice == "every" and begin_token(tokenizer) is None else None


def named_begin(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the tokenizer calls its begin token. Raises ``UsageError`` when there is none."""
    found = tokenizer.bos_token_id
    if not isinstance(found, int):
        raise UsageError(
            "evaluation.bos=every was asked for, but the tokenizer has no begin token (bos_token); leave evaluation.bos at auto, "
            "or name one in the model's tokenizer_config.json."
        )
    return found
