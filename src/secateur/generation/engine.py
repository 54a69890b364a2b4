"""What an engine is: it continues prompts and scores sequences under one model."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from secateur.calibration.sample import Sample
from secateur.errors import UsageError

Job = TypeVar("Job")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The defaults are the paper's (arXiv 2410.17711, section 4).

    ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 are off. The penalty spares end tokens: chat templates
    end every turn with one, and an answer must not run on because its question ended. ``greedy``: the likeliest token, whatever
    the others say. ``options``: further parameters under the engine's own names, handed to it as they are.
    """

    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.2
    greedy: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.top_p, self.min_p, self.repetition_penalty)
        if not all(map(math.isfinite, numbers)) or self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise UsageError(f"Sampling needs temperature > 0 and 0 < top_p <= 1; found {self}.")
        if self.top_k < 0 or self.repetition_penalty <= 0 or not 0 <= self.min_p < 1:
            raise UsageError(
                f"Sampling needs top_k >= 0 (0: no limit), repetition_penalty > 0 and 0 <= min_p < 1; found {self}."
            )


class Engine(ABC):
    """Continues and scores token sequences. The same seed gives the same ids on the same machine."""

    end_tokens: list[int]
    """The tokens at which the model ends a text."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        """Continue ``prompts`` to an end token, or all by as many tokens as bring the longest to ``length``.

        With ``each``, every one goes on to ``length`` tokens in all, whatever the others' lengths, as far as the model's
        positions go.

        The samples' ids include prompt and end token. Their ``mean_logprob`` is set where the engine learns it on the way
        (equal to ``score`` up to the rounding of its dtype), else ``None``. Raises ``NumericsError`` when the model's outputs are not
        finite, ``UsageError`` when the engine cannot draw as ``sampling`` says.
        """

    @abstractmethod
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Mean log-probability in nats of each sequence's tokens after its first; the sequence is read as it is (who asks
        puts the begin token before it: ``models.begin``)."""

    def spread(self, work: Callable[[Engine, Job], list[Sample]], jobs: Sequence[Job]) -> Iterator[list[Sample]]:
        """``work(engine, job)`` of each job, in order. An engine that has several machines does several at once."""
        return (work(self, job) for job in jobs)


class EngineSettings(ABC):
    """What a recipe can say of an engine. Subclasses are frozen dataclasses; the first line of a docstring is its summary."""

    @abstractmethod
    def open(self, folder: Path, device: str, dtype: str) -> Engine:
        """The engine with the model of ``folder``; ``dtype`` as in a recipe (``stored``: as stored; ``auto``: by the device). Raises ``ModelError``
        when the model cannot be loaded, ``UsageError`` when the engine cannot run here."""

    @classmethod
    def deciding(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of an engine's ``name`` and settings as ``given``, those that decide its samples: a set's digest has only these."""
        return dict(given)


def batch_seed(seed: int, number: int) -> int:
    """The seed of the ``number``-th piece of the work that ``seed`` decides."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
