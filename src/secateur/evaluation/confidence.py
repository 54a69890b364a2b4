"""Whether a model's confidence is deserved: expected calibration error, and the data of a reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secateur.errors import UsageError

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The answers of confidence in ``(low, high]``: how many, how sure on average, and which share was right."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """``ece = sum over bins of count / all * |accuracy - confidence|`` with bins of equal width over (0, 1] (Naeini et al.
    2015; as in Ba et al. 2024, arXiv 2410.10864). ``confidence``: mean over all answers; ``bins``: the diagram's."""

    ece: float
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]

    def scores(self) -> dict[str, Any]:
        """As a scores file has it: ``ece``, and the rest under ``reliability``."""
        found = asdict(self)
        return {"ece": found.pop("ece"), "reliability": found | {"bins": list(found["bins"])}}


def reliability(confidences: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> Reliability:
    """The reliability of answers given with ``confidences`` in [0, 1]. Raises ``UsageError`` for none, or no bins."""
    if not confidences or bins < 1:
        raise UsageError(f"Reliability needs answers and at least one bin; found {len(confidences)} and {bins}.")
    members: list[list[int]] = [[] for _ in range(bins)]
    for index, value in enumerate(confidences):
        members[min(max(math.ceil(value * bins) - 1, 0), bins - 1)].append(index)
    found, error = [], 0.0
    for number, inside in enumerate(members):
        mean = math.fsum(confidences[index] for index in inside) / len(inside) if inside else None
        right = sum(bool(correct[index]) for index in inside) / len(inside) if inside else None
        found.append(Bin(number / bins, (number + 1) / bins, len(inside), mean, right))
        if mean is not None and right is not None:
            error += len(inside) / len(confidences) * abs(right - mean)
    total = len(confidences)
    return Reliability(error, math.fsum(confidences) / total, sum(map(bool, correct)) / total, tuple(found))


def confidence_of(logprobs: Sequence[float]) -> float:
    """The largest share of a softmax over the choices' log-likelihoods in nats: how sure the model is of its answer."""
    largest = max(logprobs)
    return 1 / math.fsum(math.exp(value - largest) for value in logprobs)
