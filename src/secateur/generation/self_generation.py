"""Self-generation: rounds of batches until what the filters keep is enough for the samples asked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from secateur.calibration.filters.base import Filter, Verdict, apply_filters
from secateur.calibration.packing import Document
from secateur.calibration.sample import Sample
from secateur.errors import CalibrationError
from secateur.generation.engine import Engine, Sampling
from secateur.journal import Journal

HOPELESS_AFTER, HOPELESS_TOKENS = 256, 8


@dataclass(frozen=True)
class Goal:
    """When to stop: ``tokens`` kept, as packing counts them, or ``generations`` made if given."""

    tokens: int
    generations: int | None = None


@dataclass(frozen=True)
class Generated:
    """All generations in the order they were made, each with its verdict."""

    samples: tuple[Sample, ...]
    verdicts: tuple[Verdict, ...]

    def documents(self, specials: frozenset[int]) -> Iterator[Document]:
        """What was kept, as documents for packing: without begin and end tokens, ended where the model ended them."""
        for index, (sample, verdict) in enumerate(zip(self.samples, self.verdicts, strict=True)):
            if verdict.keep:
                ids = tuple(token for token in sample.token_ids if token not in specials)
                yield Document(ids, ended=sample.finish == "eos", origin=f"self#{index}")


@dataclass(frozen=True)
class SelfGeneration:
    """Text the model being pruned writes itself.

    The model continues prompts in batches of ``batch_size``; every generation is scored under it; ``filters`` judge all
    of them together. With ``one_each``, a generation counts as one window of so many tokens, or not at all when it is
    shorter (packing by document). Source: Ji et al. 2024, arXiv 2410.17711, section 4 (their fixed pool: ``Goal.generations``).
    """

    engine: Engine
    prompts: Iterator[list[int]]
    length: int
    sampling: Sampling
    filters: Sequence[Filter]
    batch_size: int
    seed: int
    specials: frozenset[int]
    one_each: int | None = None

    def run(
        self, goal: Goal, journal: Journal, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Generated:
        """Generate until the goal is met. Each batch is a line of ``journal``: a second run goes on after the last one.

        Raises ``CalibrationError`` when the model keeps ending its texts at once.
        """
        samples = [Sample.from_json(entry) for line in journal.entries for entry in line["samples"]]
        contents = list(map(self._content, samples))
        for _ in samples:
            next(self.prompts)
        verdicts = apply_filters(self.filters, samples)
        while (needed := self._still_needed(goal, contents, verdicts)) > 0:
            progress(len(samples), len(samples) + needed)
            prompts = [next(self.prompts) for _ in range(min(self.batch_size, needed))]
            batch = self.engine.generate(prompts, self.length, self.sampling, _batch_seed(self.seed, len(samples)))
            scores = self.engine.score([sample.token_ids for sample in batch])
            batch = [sample.scored(score) for sample, score in zip(batch, scores, strict=True)]
            journal.append({"samples": [sample.to_json() for sample in batch]})
            samples += batch
            contents += map(self._content, batch)
            verdicts = apply_filters(self.filters, samples)
            self._check_worth(contents, verdicts)
        progress(len(samples), len(samples))
        return Generated(tuple(samples), tuple(verdicts))

    def _content(self, sample: Sample) -> int:
        """Tokens that packing gets of a sample: all but begin and end tokens, and one for its end."""
        found = sum(token not in self.specials for token in sample.token_ids) + (sample.finish == "eos")
        if self.one_each is not None:
            return self.one_each if found >= self.one_each else 0
        return found

    def _still_needed(self, goal: Goal, contents: list[int], verdicts: list[Verdict]) -> int:
        """How many more generations the goal takes, going by the mean length so far (at first: full length)."""
        if goal.generations is not None:
            return goal.generations - len(contents)
        kept = sum(content for content, verdict in zip(contents, verdicts, strict=True) if verdict.keep)
        if kept >= goal.tokens:
            return 0
        mean = sum(contents) / len(contents) if contents else self.length - 1
        share = math.prod(judge.keeps for judge in self.filters)
        return max(1, math.floor((goal.tokens / share - sum(contents)) / max(mean, 1)))

    def _check_worth(self, contents: list[int], verdicts: list[Verdict]) -> None:
        kept = sum(content for content, verdict in zip(contents, verdicts, strict=True) if verdict.keep)
        if len(contents) >= HOPELESS_AFTER and kept < HOPELESS_TOKENS * len(contents):
            short = (
                f", are shorter than the {self.one_each} tokens that packing by document needs" if self.one_each else ""
            )
            raise CalibrationError(
                f"Of {len(contents)} generations only {kept:,} usable tokens were left: the texts end at once{short}, or the "
                "filters drop them. The model cannot write its own calibration data this way; take longer prefixes "
                "(calibration.generation.prefix_tokens), packing=concat, other filters, or another source."
            )


def _batch_seed(seed: int, done: int) -> int:
    digest = hashlib.sha256(f"{seed}/{done}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
