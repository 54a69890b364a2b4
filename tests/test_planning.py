"""Planning of self-generation: whatever lengths the texts have, little is made beyond what the samples need."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ScriptedContext
from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.calibration.sample import Sample
from secateur.generation.engine import Engine, Sampling
from secateur.generation.self_generation import Generated, Goal, SelfGeneration
from secateur.generation.styles.base import Material
from secateur.generation.styles.prefix import Prefix
from secateur.journal import Journal

LENGTH = 161  # a begin token and 160 others

LENGTHS = {
    "full": lambda rng: LENGTH,
    "a tenth": lambda rng: 17,
    "uniform": lambda rng: rng.randint(2, LENGTH),
    "falling": lambda rng: min(LENGTH, 2 + int(rng.expovariate(1 / 60))),
    "half at once": lambda rng: LENGTH if rng.random() < 0.5 else 2,
    "one of ten": lambda rng: LENGTH if rng.random() < 0.1 else rng.randint(2, 16),
}


class Lengths(Engine):
    """Texts of the lengths that a distribution draws, scored at random."""

    end_tokens = [1]  # noqa: RUF012 - a plain list is what an engine has

    def __init__(self, name: str, seed: int) -> None:
        self.draw, self.rng = LENGTHS[name], random.Random(seed)

    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        found = []
        for prompt in prompts:
            size = self.draw(self.rng)
            ids = (*prompt, *(9,) * (size - len(prompt) - 1), 9 if size == length else 1)
            found.append(Sample(ids, 1, "length" if size == length else "eos", -self.rng.random()))
        return found

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        raise AssertionError("what is scored already is not scored again")


def generated(name: str, seed: int, goal: Goal, drop: float, batch: int) -> tuple[Generated, list[int]]:
    """What was written, and the sizes of the rounds."""
    context = ScriptedContext()
    material = Material(context.tokenizer, 0, (), 0, "paragraph", 0)
    filters = [PerplexityFilter(drop)] if drop else []
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        writer = SelfGeneration(
            Lengths(name, seed),
            Prefix(),
            itertools.repeat([0]),
            LENGTH,
            Sampling(),
            filters,
            batch,
            0,
            material,
            context,
        )
        found = writer.run(goal, journal)
        return found, [line["round"] for line in journal.entries if "round" in line]


def worth(found: Generated, goal: Goal) -> list[int]:
    """What packing gets of each text; 0 where a filter dropped it."""
    contents = [len(sample.token_ids) - 1 for sample in found.samples]
    return [goal.worth(size) * verdict.keep for size, verdict in zip(contents, found.verdicts, strict=True)]


def waste(found: Generated, goal: Goal) -> float:
    """Tokens kept after the goal was met, by the tokens it takes. (What filters drop is no waste of the plan's.)"""
    reached = list(itertools.accumulate(worth(found, goal)))
    enough = next(index for index, total in enumerate(reached) if total >= goal.tokens)
    return (reached[-1] - reached[enough]) / goal.tokens


WINDOWS = {"full": 160, "uniform": 40, "falling": 40, "half at once": 160, "one of ten": 160}


@pytest.mark.parametrize(("name", "window"), [*((name, None) for name in LENGTHS), *WINDOWS.items()])
def test_what_is_made_beyond_the_need_stays_below_a_quarter(name, window):
    goal = Goal(48 * (window or LENGTH - 1), window=window)
    found = [waste(generated(name, seed, goal, 0.2 * (seed % 2), 16)[0], goal) for seed in range(8)]
    assert fmean(found) <= 0.1
    assert sum(share > 0.25 for share in found) <= 1  # lengths are chance: what is to come can be other than what was


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(LENGTHS)),
    st.integers(0, 999),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.booleans(),
)
def test_a_round_is_begun_only_when_needed_and_is_no_larger_than_what_is_known(name, seed, texts, drop, short):
    windows = short and name not in {"a tenth", "one of ten"}  # of which hardly any text fills one
    goal = Goal(texts * (LENGTH - 1), window=40 if windows else None)
    found, rounds = generated(name, seed, goal, drop, 8)
    assert sum(rounds) == len(found.samples)
    assert sum(worth(found, goal)) >= goal.tokens
    full = goal.tokens / (1 - drop) / (goal.window or LENGTH - 1)
    assert rounds[0] <= max(1, full)
    for number, size in enumerate(rounds[1:], 1):
        assert size <= sum(rounds[:number])
    if name == "full" and not drop:
        assert len(rounds) == 1
        assert waste(found, goal) == 0
