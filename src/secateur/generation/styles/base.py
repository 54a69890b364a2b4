"""What a style is: how the model is made to write its own calibration text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from secateur.calibration.sample import Sample
from secateur.calibration.sources.base import TextSource
from secateur.generation.engine import Engine, Sampling
from secateur.generation.prompts import Unit
from secateur.models.begin import Begin


@dataclass(frozen=True)
class Material:
    """What prompts are made of. ``bos``: the begin token, if the tokenizer puts one in front of text by itself.

    ``sources``: of the texts whose beginnings or whole are prompts, each with its weight (none where texts are written:
    all but they can be sent to another process); ``prefix_tokens`` and ``unit``: how much of them, where a style takes
    their beginnings; ``positions``: what the model was made for.
    """

    tokenizer: PreTrainedTokenizerBase
    bos: int | None
    sources: Sequence[tuple[TextSource, float]]
    prefix_tokens: int
    unit: Unit
    seed: int
    positions: int | None = None

    @property
    def scored(self) -> Begin:
        """How what is written is scored."""
        return Begin(self.bos, self.positions)

    @property
    def begin(self) -> list[int]:
        return [] if self.bos is None else [self.bos]

    @property
    def special(self) -> set[int]:
        """Ids of the tokenizer's special tokens, those it names and those that are only marked as such."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {*self.tokenizer.all_special_ids, *(token for token, entry in added if entry.special)}

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``, none added: a chat template writes its special tokens itself."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def without_sources(self) -> Material:
        return replace(self, sources=())


class Style(ABC):
    """Subclasses are frozen dataclasses: their fields are the settings a recipe can give.

    The first line of a subclass's docstring is its summary.
    """

    uses_sources: bool = True
    """Whether the prompts come from the material's sources."""
    uneven: bool = False
    """Whether prompts differ in length, so that answers do too."""

    @abstractmethod
    def prompts(self, material: Material) -> Iterator[list[int]]:
        """Prompts without end, in an order drawn by the material's seed. Raises ``CalibrationError`` or ``UsageError``
        when none can be made."""

    def check(self, material: Material, length: int) -> None:  # noqa: B027 - most styles have nothing to refuse
        """Raise ``UsageError`` when no generation of ``length`` tokens can be made of the material."""

    def begins(self, material: Material) -> bool:
        """Whether the prompts begin with the material's begin token, where there is one."""
        return True

    def write(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        length: int,
        sampling: Sampling,
        seed: int,
        material: Material,
    ) -> list[Sample]:
        """Continue ``prompts`` to ``length`` tokens in all; one sample a prompt. ``material``: without its sources. A pure
        function of its arguments: it may run anywhere."""
        return engine.generate(prompts, length, sampling, seed, each=True)
