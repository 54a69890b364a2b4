"""What an engine is: it continues prompts and scores sequences under one model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.calibration.sample import Sample
from secateur.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The defaults are the paper's (arXiv 2410.17711, section 4)."""

    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.2

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.top_p, self.repetition_penalty)
        if not all(map(math.isfinite, numbers)) or self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise UsageError(f"Sampling needs temperature > 0 and 0 < top_p <= 1; found {self}.")
        if self.top_k < 0 or self.repetition_penalty <= 0:
            raise UsageError(f"Sampling needs top_k >= 0 (0: no limit) and repetition_penalty > 0; found {self}.")


class Engine(ABC):
    """Continues and scores token sequences. The same seed gives the same ids on the same machine."""

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int) -> list[Sample]:
        """Continue ``prompts``, all of one length, to ``length`` tokens in all or an end token.

        The samples' ids include prompt and end token; their ``mean_logprob`` is not set. Raises ``NumericsError`` when
        the model's outputs are not finite.
        """

    @abstractmethod
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Mean log-probability in nats of each sequence's tokens after its first."""
