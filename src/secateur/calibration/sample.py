"""A sample, and the calibration set made of samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from secateur.errors import CalibrationError

Finish = Literal["length", "eos", "window"]
"""Why a sample ends: generation reached its length, the model ended it, or it was cut out of longer text."""


@dataclass(frozen=True)
class Sample:
    """One token sequence the model will see. Its identity is its ids: re-tokenised text is another sample.

    ``prompt_tokens``: how many ids at the start were given rather than generated, BOS included. ``mean_logprob``:
    mean log-probability under the model, in nats, of the ids after the begin token, which stood before a sample that lacks
    it if the model's tokenizer puts one before text; else of the ids after the first.
    """

    token_ids: tuple[int, ...]
    prompt_tokens: int = 0
    finish: Finish = "window"
    mean_logprob: float | None = None
    origin: str = ""

    @property
    def perplexity(self) -> float | None:
        return None if self.mean_logprob is None else math.exp(-self.mean_logprob)

    def scored(self, mean_logprob: float) -> Sample:
        return replace(self, mean_logprob=mean_logprob)

    def to_json(self) -> dict[str, Any]:
        return {
            "token_ids": list(self.token_ids),
            "prompt_tokens": self.prompt_tokens,
            "finish": self.finish,
            "mean_logprob": self.mean_logprob,
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Sample:
        return cls(
            tuple(entry["token_ids"]), entry["prompt_tokens"], entry["finish"], entry["mean_logprob"], entry["origin"]
        )


@dataclass(frozen=True)
class CalibrationSet:
    """The final, ordered samples. ``account`` says what they were made from (documents read, tokens cut, ...)."""

    samples: tuple[Sample, ...]
    account: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(len(sample.token_ids) for sample in self.samples)

    @property
    def digest(self) -> str:
        """SHA-256 over the ids, in order."""
        text = json.dumps([sample.token_ids for sample in self.samples], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def write_samples(
    path: Path, samples: Iterable[Sample], texts: Sequence[str], extra: Sequence[dict[str, Any]] = ()
) -> None:
    """One JSON line a sample: its ids and facts, its ``text`` (for people: the ids are what counts), and ``extra``."""
    with path.open("w", encoding="utf-8") as stream:
        for index, sample in enumerate(samples):
            entry = sample.to_json() | {"text": texts[index]} | (extra[index] if extra else {})
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_samples(path: Path) -> list[Sample]:
    """Samples from a file that ``write_samples`` wrote. Raises ``CalibrationError`` naming a bad line."""
    samples = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                samples.append(Sample.from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise CalibrationError(f"{path}, line {number}, is not a sample: {error!r}.") from error
    return samples
