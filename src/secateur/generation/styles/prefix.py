"""The paper's style: the model goes on from the first few tokens of any text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.errors import UsageError
from secateur.generation.prompts import prefixes, weighted
from secateur.generation.styles.base import Material, Style


@dataclass(frozen=True)
class Prefix(Style):
    """Continue the first few tokens of any text (the paper's).

    Several sources take turns by their weights. Cost: one generation a text.
    Source: Ji et al. 2024, arXiv 2410.17711, section 4.
    """

    def prompts(self, material: Material) -> Iterator[list[int]]:
        tokens, unit, seed = material.prefix_tokens, material.unit, material.seed
        return weighted(
            [
                (prefixes(source, material.tokenizer, tokens, unit, material.bos, seed), weight)
                for source, weight in material.sources
            ]
        )

    def check(self, material: Material, length: int) -> None:
        prompt = material.prefix_tokens + len(material.begin)
        if length <= prompt:
            raise UsageError(
                f"Samples of {length} tokens leave nothing to generate after prompts of {prompt}; raise calibration.length."
            )
