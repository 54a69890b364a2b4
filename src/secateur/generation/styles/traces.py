"""RAC's style: a reasoning model solves tasks, and its chain of thought is the calibration text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from secateur.calibration.sources.base import TextSource
from secateur.errors import CalibrationError, UsageError
from secateur.generation.prompts import CHARACTERS_A_TOKEN, PREFIXES_AT_MOST, weighted
from secateur.generation.styles.base import Material, Style
from secateur.generation.styles.template import Turn, user_turn


@dataclass(frozen=True)
class Traces(Style):
    """Solve whole task prompts, chain of thought and answer.

    Each text of the prefix sources is a task: what a user asks in the model's chat template. ``template`` ``never``: the
    text as it is, after the begin token; ``auto``: so where there is no template. Prompts of more than ``prompt_tokens``
    tokens, template included, are passed over. What the model writes is kept together with its prompt, for
    ``calibration.packing=whole``.
    Cost: one generation a task. Source: Lucas et al. 2026 (RAC), arXiv 2509.12464.
    """

    prompt_tokens: int = 1024
    template: Literal["auto", "never", "always"] = "auto"

    uneven = True

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise UsageError(f"The style traces needs prompt_tokens >= 1; found {self.prompt_tokens}.")

    def prompts(self, material: Material) -> Iterator[list[int]]:
        turn = self._turn(material)
        return weighted([(self._tasks(source, turn, material), weight) for source, weight in material.sources])

    def check(self, material: Material, length: int) -> None:
        self._turn(material)
        if length <= self.prompt_tokens:
            raise UsageError(
                f"Samples of {length} tokens leave nothing to generate after prompts of up to {self.prompt_tokens}; raise "
                "calibration.length, or lower the style's prompt_tokens."
            )

    def begins(self, material: Material) -> bool:
        turn = self._turn(material)
        return turn is None or material.scored.begins(material.encode(turn.before))

    def _turn(self, material: Material) -> Turn | None:
        """What stands around a task; ``None``: nothing but the begin token."""
        wanted = self.template == "always" or (self.template == "auto" and material.tokenizer.chat_template)
        return user_turn(material.tokenizer) if wanted else None

    def _tasks(self, source: TextSource, turn: Turn | None, material: Material) -> Iterator[list[int]]:
        """The prompts of one source in an order drawn by the seed, over and over."""
        found: list[str] = []
        for _, text in source.shuffled(material.seed):
            if len(text) <= self.prompt_tokens * CHARACTERS_A_TOKEN:  # more would only be tokenised to be passed over
                ids = _prompt(text, turn, material)
                if len(ids) <= self.prompt_tokens:
                    found.append(text)
                    yield ids
            if len(found) == PREFIXES_AT_MOST:
                break
        if not found:
            raise CalibrationError(
                f"No text of the prefix source {source.name!r} makes a prompt of at most {self.prompt_tokens} tokens; raise "
                "the style's prompt_tokens, or give a source of tasks (calibration.generation.prefixes)."
            )
        while True:
            yield from (_prompt(text, turn, material) for text in found)


def _prompt(text: str, turn: Turn | None, material: Material) -> list[int]:
    return material.begin + material.encode(text) if turn is None else material.encode(turn.around(text.strip()))
