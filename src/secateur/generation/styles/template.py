"""Chat templates: what a model's own template puts before and after what a user says."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from secateur.errors import UsageError

MARK = "WhatTheUserSaysStandsHere"
DATE = "26 Jul 2024"
"""What templates that show the day take it from if given: else a prompt would be another one tomorrow."""


@dataclass(frozen=True)
class Turn:
    """A conversation of one question, but for the question: the text ``before`` it, and that ``after`` it, up to where the
    answer starts."""

    before: str
    after: str

    def around(self, question: str) -> str:
        return self.before + question + self.after


def user_turn(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> Turn:
    """The template's turn of a user. Raises ``UsageError`` when there is no template, or none that can be used so."""
    if not tokenizer.chat_template:
        raise UsageError(
            "This model's tokenizer has no chat template, so the model was probably not tuned on conversations; use "
            "the style prefix, or add chat_template.jinja to the model's folder."
        )
    messages = [{"role": "user", "content": MARK}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=DATE)
    except Exception as error:  # a template is a program, which can fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = " Leave out the system text," if system is not None else " Mend it,"
        raise UsageError(
            f"The chat template of this model's tokenizer cannot be rendered: {reason}.{hint} or use the style prefix."
        ) from error
    parts = str(text).split(MARK)
    if len(parts) != 2:
        raise UsageError(
            f"The chat template of this model's tokenizer shows what the user says {len(parts) - 1} times, not once, so "
            "nothing can be put in its place. Mend it, or use the style prefix."
        )
    return Turn(*parts)
