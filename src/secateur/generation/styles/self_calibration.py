"""Self-calibration: from the begin token alone, with a temperature that falls along the first tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from secateur.calibration.sample import Sample
from secateur.errors import UsageError
from secateur.generation.engine import Engine, Sampling
from secateur.generation.styles.base import Material, Style
from secateur.generation.styles.segments import write_segments


@dataclass(frozen=True)
class SelfCalibration(Style):
    """From the begin token alone, hot at first, cooling.

    ``begin``: the text of the token to start from; ``None``: the tokenizer's begin token, whether or not it puts one in front
    of text by itself (the paper's Phi-2 has one and puts none). Token i of the first ``tokens`` is drawn at temperature ``start + (i / tokens) * (T - start)``, i = 0, 1, ..., with T the
    generation's temperature, at which the rest is drawn; the other sampling settings hold throughout. The paper samples
    without top-k and top-p, and reports a grid of ``start``; its exact values are not public.
    Cost: ``tokens`` short calls of the engine more than one. Source: Williams et al. 2025, arXiv 2410.17170.
    """

    start: float = 2.0
    tokens: int = 10
    begin: str | None = None

    uses_sources = False

    def __post_init__(self) -> None:
        if self.start <= 0 or self.tokens < 0:
            raise UsageError(f"Self-calibration needs start > 0 and tokens >= 0; found {self.start} and {self.tokens}.")

    def prompts(self, material: Material) -> Iterator[list[int]]:
        return itertools.repeat(self._start(material))

    def check(self, material: Material, length: int) -> None:
        self._start(material)
        if length < 2:
            raise UsageError(
                f"Samples of {length} token leave nothing to write after the begin token; raise calibration.length."
            )

    def begins(self, material: Material) -> bool:
        return material.scored.begins(self._start(material))

    def _start(self, material: Material) -> list[int]:
        if self.begin is not None:
            found = material.encode(self.begin)
            if len(found) != 1:
                raise UsageError(
                    f"Self-calibration starts from one token alone, but begin {self.begin!r} is {len(found)} tokens to this "
                    "model's tokenizer; give the text of one, such as a special token's."
                )
            return found
        own = material.tokenizer.bos_token_id if material.bos is None else material.bos
        if not isinstance(own, int):
            raise UsageError(
                "Self-calibration starts from the begin token alone, and this model's tokenizer has none; name the token that "
                "stands before its training texts (the style's begin, such as <|endoftext|>), or use the style prefix or "
                "random-start."
            )
        return [own]

    def write(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        length: int,
        sampling: Sampling,
        seed: int,
        material: Material,
    ) -> list[Sample]:
        final = sampling.temperature
        falling = [self.start + step / self.tokens * (final - self.start) for step in range(self.tokens)]
        segments = [(1, replace(sampling, temperature=temperature)) for temperature in falling]
        return write_segments(engine, prompts, length, [*segments, (0, sampling)], seed)
