"""LLM-QAT's style: a random token, a few greedy ones, then sampling."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from secateur.calibration.sample import Sample
from secateur.errors import UsageError
from secateur.generation.engine import Engine, Sampling
from secateur.generation.styles.base import Material, Style
from secateur.generation.styles.segments import write_segments


@dataclass(frozen=True)
class RandomStart(Style):
    """A random token, a few greedy ones, then sampling.

    After the begin token (if any) stands a token drawn uniformly from the vocabulary without the special ones; ``greedy``
    tokens follow deterministically (3 to 5 in the paper), the rest is sampled.
    Cost: one short call of the engine more than one. Source: Liu et al. 2023 (LLM-QAT), arXiv 2305.17888, section 2.
    """

    greedy: int = 4

    uses_sources = False

    def __post_init__(self) -> None:
        if self.greedy < 0:
            raise UsageError(f"The style random-start needs greedy >= 0; found {self.greedy}.")

    def prompts(self, material: Material) -> Iterator[list[int]]:
        rng, special = random.Random(material.seed), material.special
        tokens = [token for token in range(len(material.tokenizer)) if token not in special]
        while True:
            yield [*material.begin, rng.choice(tokens)]

    def check(self, material: Material, length: int) -> None:
        if length <= len(material.begin) + 1 + self.greedy:
            raise UsageError(
                f"Samples of {length} tokens leave nothing to sample after a random token and {self.greedy} greedy ones; "
                "raise calibration.length."
            )

    def write(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        length: int,
        sampling: Sampling,
        seed: int,
        material: Material,
    ) -> list[Sample]:
        segments = [(self.greedy, replace(sampling, greedy=True))] * bool(self.greedy)
        return write_segments(engine, prompts, length, [*segments, (0, sampling)], seed)
