"""Self-generation: rounds of batches until what the filters keep is enough for the samples asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, pstdev

from secateur.calibration.context import Context
from secateur.calibration.filters.base import Filter, Verdict, apply_filters, tally
from secateur.calibration.packing import Document
from secateur.calibration.sample import Sample
from secateur.errors import CalibrationError
from secateur.generation.engine import Engine, Sampling, batch_seed
from secateur.generation.styles.base import Material, Style
from secateur.journal import Journal

HOPELESS_AFTER, HOPELESS_TOKENS = 256, 8
ROUND = 64
"""Batches at most between two judgements: what the filters see late is made in vain."""


@dataclass(frozen=True)
class Goal:
    """When to stop: ``tokens`` kept, as packing counts them, or ``generations`` made if given.

    What packing makes of one generation decides what it is worth: its tokens; or, with ``window``, so many of them, none
    when it is shorter; or, with ``whole`` too, so many however short it is, since it becomes one sample as it is.
    """

    tokens: int
    generations: int | None = None
    window: int | None = None
    whole: bool = False

    def worth(self, content: int) -> int:
        """What a generation with so many tokens adds."""
        if self.window is None:
            return content
        return self.window if content and (self.whole or content >= self.window) else 0


@dataclass(frozen=True)
class Generated:
    """All generations in the order they were made, each with its verdict."""

    samples: tuple[Sample, ...]
    verdicts: tuple[Verdict, ...]

    def documents(self, bos: int | None, end_tokens: Sequence[int]) -> Iterator[Document]:
        """What was kept, as documents for packing: without the begin and the end token, ended where the model ended
        them."""
        for index, (sample, verdict) in enumerate(zip(self.samples, self.verdicts, strict=True)):
            if verdict.keep:
                ids, prompt = content_of(sample, bos, end_tokens)
                ended = sample.finish == "eos"
                end = sample.token_ids[-1] if ended else None
                yield Document(ids, ended=ended, origin=f"self#{index}", prompt_tokens=prompt, end=end)


def content_of(sample: Sample, bos: int | None, end_tokens: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """A sample's tokens without those that begin and end it, and how many of them are its prompt's.

    Where one token both begins and ends texts (GPT-2's), that in front of a sample is no content either.
    """
    ids = sample.token_ids[:-1] if sample.finish == "eos" and sample.token_ids[-1] in end_tokens else sample.token_ids
    begins = next((place for place, token in enumerate(ids) if token != bos and token not in end_tokens), len(ids))
    return ids[begins:], max(0, sample.prompt_tokens - begins)


@dataclass(frozen=True)
class SelfGeneration:
    """Text the model being pruned writes itself.

    The model writes as ``style`` has it, in batches of ``batch_size``; every generation is scored under it; ``filters``
    judge all of them together. Source: Ji et al. 2024, arXiv 2410.17711, section 4 (their fixed pool: ``Goal.generations``).
    """

    engine: Engine
    style: Style
    prompts: Iterator[list[int]]
    length: int
    sampling: Sampling
    filters: Sequence[Filter]
    batch_size: int
    seed: int
    material: Material
    context: Context

    def run(
        self, goal: Goal, journal: Journal, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Generated:
        """Generate until the goal is met. Each batch is a line of ``journal``: a second run goes on after the last one.

        A round is planned, written down, made and judged; so the result does not depend on how many batches run at once,
        nor on where a run was stopped. Raises ``CalibrationError`` when the model keeps ending its texts at once.
        """
        samples: list[Sample] = []
        planned = 0
        for line in journal.entries:
            if "round" in line:
                planned = len(samples) + line["round"]
            else:
                samples += map(Sample.from_json, line["samples"])
        for _ in samples:
            next(self.prompts)
        verdicts: list[Verdict] = []
        while True:
            if len(samples) < planned:
                self._make(samples, planned, goal, journal, progress)
            verdicts = apply_filters(self.filters, samples, self.context)
            contents = self._worth(goal, samples)
            self._check_worth(goal, contents, verdicts)
            needed = min(self._still_needed(goal, contents, verdicts), ROUND * self.batch_size)
            if needed <= 0:
                break
            journal.append({"round": needed})
            planned = len(samples) + needed
        progress(len(samples), len(samples))
        return Generated(tuple(samples), tuple(verdicts))

    def _make(
        self,
        samples: list[Sample],
        planned: int,
        goal: Goal,
        journal: Journal,
        progress: Callable[[int, int], None],
    ) -> None:
        """The rest of a round, batch by batch, added to ``samples``."""
        jobs = []
        for start in range(len(samples), planned, self.batch_size):
            prompts = [next(self.prompts) for _ in range(min(self.batch_size, planned - start))]
            jobs.append((prompts, batch_seed(self.seed, start)))
        progress(len(samples), planned)
        work = partial(_write_and_score, self.style, self.length, self.sampling, self.material.without_sources())
        for batch in self.engine.spread(work, jobs):
            journal.append({"samples": [sample.to_json() for sample in batch]})
            samples += batch
            progress(len(samples), planned)
            contents = self._worth(goal, samples)
            self._check_worth(goal, contents, [Verdict(True, 0.0)] * len(samples))

    def _worth(self, goal: Goal, samples: Sequence[Sample]) -> list[int]:
        """What packing gets of each sample: all but begin and end tokens, and one for its end."""
        found = []
        for sample in samples:
            content = len(content_of(sample, self.material.bos, self.engine.end_tokens)[0])
            found.append(goal.worth(content + (sample.finish == "eos")))
        return found

    def _still_needed(self, goal: Goal, contents: list[int], verdicts: list[Verdict]) -> int:
        """How many more generations the goal takes: at first, texts of full length; then, by what was kept of each so far.

        With n generations the next ones give n m + 2 s sqrt(n) in all but one case of forty (m, s: mean and deviation
        of what was kept of one, and of one more of full length); that may pass the goal by an eighth, but not its mean.
        A round is no larger than all before it: what few texts say of the rest is little.
        """
        if goal.generations is not None:
            return goal.generations - len(contents)
        kept = [content if verdict.keep else 0 for content, verdict in zip(contents, verdicts, strict=True)]
        missing = goal.tokens - sum(kept)
        if missing <= 0:
            return 0
        expected = math.prod(judge.keeps for judge in self.filters) * (goal.window or self.length - 1)
        if not kept:
            return max(1, math.floor(missing / expected))
        mean, spread = fmean([*kept, expected]), 2 * pstdev([*kept, expected])
        root = (math.sqrt(spread**2 + 4 * mean * (missing + goal.tokens / 8)) - spread) / (2 * mean)
        return max(1, min(len(kept), math.ceil(missing / mean), math.floor(root**2)))

    def _check_worth(self, goal: Goal, contents: list[int], verdicts: list[Verdict]) -> None:
        kept = sum(content for content, verdict in zip(contents, verdicts, strict=True) if verdict.keep)
        if len(contents) >= HOPELESS_AFTER and kept < min(HOPELESS_TOKENS, self.length // 4) * len(contents):
            short = (
                f", are shorter than the {goal.window} tokens that packing by document needs"
                if goal.window and not goal.whole
                else ""
            )
            dropped = f" ({found})" if (found := tally(verdicts)) else ""
            raise CalibrationError(
                f"Of {len(contents)} generations only {kept:,} usable tokens were left: the texts end at once{short}, or the "
                f"filters drop them{dropped}. The model cannot write its own calibration data this way; take longer prefixes "
                "(calibration.generation.prefix_tokens), packing=concat, other filters, or another source."
            )


def _write_and_score(
    style: Style,
    length: int,
    sampling: Sampling,
    material: Material,
    engine: Engine,
    job: tuple[list[list[int]], int],
) -> list[Sample]:
    """One batch, wherever ``engine`` is. Only what it did not score while writing is scored afterwards, and what does not
    begin with the begin token though text does under this model: its score on the way was without one."""
    prompts, seed = job
    begin = material.scored
    batch = style.write(engine, prompts, length, sampling, seed, material)
    unscored = [
        index for index, sample in enumerate(batch) if sample.mean_logprob is None or not begin.begins(sample.token_ids)
    ]
    if unscored:
        scores = engine.score([begin.before(batch[index].token_ids) for index in unscored])
        for index, score in zip(unscored, scores, strict=True):
            batch[index] = batch[index].scored(score)
    return batch
