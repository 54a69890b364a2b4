"""What a style is: how the model is made to write its own calibration text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from secateur.calibration.sample import Sample
from secateur.calibration.sources.base import TextSource
from secateur.generation.engine import Engine, Sampling
from secateur.generation.prompts import Unit


@dataclass(frozen=True)
class Material:
    """What prompts are made of. ``bos``: the begin token, if the tokenizer puts one in front of text by itself.

    ``sources``: of the texts whose beginnings or whole are prompts, each with its weight; ``prefix_tokens`` and ``unit``:
    how much of them, where a style takes their beginnings.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: int | None
    sources: Sequence[tuple[TextSource, float]]
    prefix_tokens: int
    unit: Unit
    seed: int

    @property
    def begin(self) -> list[int]:
        return [] if self.bos is None else [self.bos]


class Style(ABC):
    """Subclasses are frozen dataclasses: their fields are the settings a recipe can give.

    The first line of a subclass's docstring is its summary.
    """

    uses_sources: bool = True
    """Whether the prompts come from the material's sources."""

    @abstractmethod
    def prompts(self, material: Material) -> Iterator[list[int]]:
        """Prompts without end, in an order drawn by the material's seed. Raises ``CalibrationError`` or ``UsageError``
        when none can be made."""

    def check(self, material: Material, length: int) -> None:  # noqa: B027 - most styles have nothing to refuse
        """Raise ``UsageError`` when no generation of ``length`` tokens can be made of the material."""

    def write(
        self, engine: Engine, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int
    ) -> list[Sample]:
        """Continue ``prompts`` to ``length`` tokens in all. A pure function of its arguments: it may run anywhere."""
        return engine.generate(prompts, length, sampling, seed)
