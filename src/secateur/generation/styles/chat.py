"""Magpie's style: an instruction-tuned model writes what a user asks, then answers it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateur.calibration.sample import Sample
from secateur.errors import UsageError
from secateur.generation.engine import Engine, Sampling, batch_seed
from secateur.generation.styles.base import Material, Style
from secateur.generation.styles.template import Turn, user_turn

TRIES = 4
"""How often a question is asked for that turns out empty."""


@dataclass(frozen=True)
class Chat(Style):
    """Both sides of a conversation: what a user asks, and the answer.

    The model goes on from its chat template up to where a user's words would start, until it ends the turn or has written
    ``user_tokens``; these words then stand in the template, and it answers. The answer is what it wrote: all before is the
    sample's prompt. ``system``: text of the system role; ``None``: what the template has by itself. An empty question is
    asked for again with other seeds, and left empty after the fourth time, so that there is a sample for every prompt.
    Cost: a second call of the engine, of up to ``user_tokens`` tokens. Source: Xu et al. 2024 (Magpie), arXiv 2406.08464.
    """

    system: str | None = None
    user_tokens: int = 256

    uses_sources = False
    uneven = True

    def __post_init__(self) -> None:
        if self.user_tokens < 1:
            raise UsageError(f"The style chat needs user_tokens >= 1; found {self.user_tokens}.")

    def prompts(self, material: Material) -> Iterator[list[int]]:
        return itertools.repeat(self._start(material))

    def check(self, material: Material, length: int) -> None:
        self._start(material)
        most = self._most(user_turn(material.tokenizer, self.system), material)
        if length <= most:
            raise UsageError(
                f"Samples of {length} tokens leave nothing for an answer after a chat template with up to "
                f"{self.user_tokens} tokens of the user, {most} in all; raise calibration.length, or lower the style's "
                "user_tokens."
            )

    def begins(self, material: Material) -> bool:
        return material.scored.begins(self._start(material))

    def write(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        length: int,
        sampling: Sampling,
        seed: int,
        material: Material,
    ) -> list[Sample]:
        turn = user_turn(material.tokenizer, self.system)
        ends = {*engine.end_tokens, *material.special, *_end_of_turn(turn, material)}
        said: list[list[int]] = [[] for _ in prompts]
        for attempt in range(TRIES):
            empty = [index for index, ids in enumerate(said) if not _words(turn, ids, material)]
            if not empty:
                break
            asked = [prompts[index] for index in empty]
            reach = max(map(len, asked)) + self.user_tokens
            found = engine.generate(asked, reach, sampling, batch_seed(seed, attempt))
            for index, sample in zip(empty, found, strict=True):
                written = sample.token_ids[sample.prompt_tokens :]
                said[index] = list(itertools.takewhile(lambda token: token not in ends, written))
        most = min(self._most(turn, material), length - 1)
        questions = [_question(turn, ids, most, material) for ids in said]
        return engine.generate(questions, length, sampling, batch_seed(seed, TRIES), each=True)

    def _start(self, material: Material) -> list[int]:
        found = material.encode(user_turn(material.tokenizer, self.system).before) or material.begin
        if not found:
            raise UsageError(
                "The chat template of this model's tokenizer has nothing before what the user says, and the tokenizer no "
                "begin token, so there is nothing to start from; set the style's system text, or use the style prefix."
            )
        return found

    def _most(self, turn: Turn, material: Material) -> int:
        """Tokens before the answer at most."""
        return len(material.encode(turn.around(""))) + self.user_tokens


def _end_of_turn(turn: Turn, material: Material) -> list[int]:
    """The token after a user's words, if it is one that the tokenizer has for such a purpose."""
    added = material.tokenizer.added_tokens_decoder
    return [token for token in material.encode(turn.after)[:1] if token in added and added[token].content.strip()]


def _words(turn: Turn, ids: Sequence[int], material: Material) -> str:
    """What a user says with these tokens, up to where the model wrote the end of the turn out as plain text."""
    text = str(material.tokenizer.decode(list(ids), skip_special_tokens=True))
    end = turn.after.strip()
    return (text.partition(end)[0] if end else text).strip()


def _question(turn: Turn, ids: list[int], most: int, material: Material) -> list[int]:
    """The whole template with the user's words, all that is before the answer; tokenised anew, it may have more tokens than
    were written, and is then cut, token by token."""
    while True:
        found = material.encode(turn.around(_words(turn, ids, material)))
        if len(found) <= most or not ids:
            return found
        ids = ids[:-1]
