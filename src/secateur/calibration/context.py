"""What filters, selections and diagnoses may ask besides the samples themselves: their text, other texts, the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from secateur.calibration.sample import Sample
from secateur.calibration.sources.base import Tokenizer


class Context(ABC):
    """Everything is made when it is first asked for, and kept: what needs no model loads none.

    ``model`` arguments name another model than the one the set is for (a Hub id or a folder); ``None`` is that one.
    """

    tokenizer: Tokenizer
    seed: int

    @abstractmethod
    def texts(self, samples: Sequence[Sample]) -> list[str]:
        """The samples as text, without special tokens."""

    @abstractmethod
    def source_texts(self, source: str) -> Iterator[str]:
        """The texts of a source by name, in its fixed order. Raises ``CalibrationError`` when it cannot be read."""

    @abstractmethod
    def mean_logprobs(self, samples: Sequence[Sample], model: str | None = None) -> list[float]:
        """Mean log-probability in nats of each sample's tokens after the begin token, which is put before a sample that
        lacks it if the model's tokenizer puts one before text; else of those after its first token. Another model reads
        the samples' text."""

    def counted(self, sample: Sample) -> int:
        """How many tokens the mean of ``mean_logprobs`` is over."""
        return len(sample.token_ids) - 1

    @abstractmethod
    def min_k(self, samples: Sequence[Sample], share: float, plus: bool = True) -> list[float]:
        """Mean over the ``share`` least likely tokens of each sample of log p (Min-K %), or, with ``plus``, of log p
        standardised by its mean and deviation under the model's own distribution at that token (Min-K %++). The tokens are
        those of ``mean_logprobs``."""

    @abstractmethod
    def activations(self, samples: Sequence[Sample], dimensions: int) -> np.ndarray:
        """What each sample does inside the model: ``[samples, dimensions]`` fp32, its mean inputs to every block's linears
        (padding left out), each of unit length, concatenated and randomly projected."""

    @abstractmethod
    def gradients(self, samples: Sequence[Sample], dimensions: int, adam: bool) -> np.ndarray:
        """The gradient of each sample's loss, over the tokens of ``mean_logprobs``, in low-rank adapters of the linears,
        ``[samples, dimensions]`` fp32, randomly projected; with ``adam``, as the step that Adam would take."""
