"""Self-generation: seeded, resumable, no more than needed; prompts of exactly the asked tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from conftest import CONFIGS, ScriptedContext, save_model, tiny_tokenizer
from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.calibration.packing import Packing
from secateur.calibration.sample import Sample
from secateur.calibration.sources.files import FileSource
from secateur.errors import CalibrationError, NumericsError, UsageError
from secateur.generation.engine import Engine, Sampling
from secateur.generation.prompts import prefixes
from secateur.generation.self_generation import Goal, SelfGeneration
from secateur.generation.styles.base import Material
from secateur.generation.styles.prefix import Prefix
from secateur.generation.transformers_engine import TransformersEngine
from secateur.journal import Journal
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model


class ScriptedEngine(Engine):
    """Writes texts whose length and score follow from the seed; counts its calls; fails when told to."""

    end_tokens = [1]  # noqa: RUF012 - a plain list is what an engine has

    def __init__(self, length_of=lambda number: None, fail_after: int | None = None) -> None:
        self.length_of, self.fail_after = length_of, fail_after
        self.batches: list[int] = []
        self.made = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise KeyboardInterrupt
        self.batches.append(len(prompts))
        found = []
        for row, prompt in enumerate(prompts):
            size = self.length_of(self.made) or length
            ids = (*prompt, *(10 + (seed + row + step) % 80 for step in range(size - len(prompt))))
            found.append(
                Sample(ids if size == length else (*ids[:-1], 1), len(prompt), "length" if size == length else "eos")
            )
            self.made += 1
        return found

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        return [-(sum(ids) % 97) / 50 for ids in sequences]


def writer(engine: Engine, batch_size: int = 8, drop: float = 0.2, length: int = 16) -> SelfGeneration:
    prompts = ([0, 10 + n % 50, 60] for n in itertools.count())
    filters = [PerplexityFilter(drop)] if drop else []
    context = ScriptedContext()
    material = Material(context.tokenizer, 0, (), 2, "paragraph", 0)
    return SelfGeneration(engine, Prefix(), prompts, length, Sampling(), filters, batch_size, 0, material, context)


def test_no_more_is_generated_than_the_samples_need(tmp_path):
    engine = ScriptedEngine()
    generated = writer(engine).run(Goal(tokens=21 * 15), Journal(tmp_path / "j"))
    assert engine.batches == [8, 8, 8, 2]
    assert sum(verdict.keep for verdict in generated.verdicts) == 21  # a fifth of 26, rounded down, is dropped


def test_texts_that_end_early_are_made_up_for_and_packed_without_padding(tmp_path):
    engine = ScriptedEngine(length_of=lambda number: 9 if number % 2 else None)
    generated = writer(engine, drop=0).run(Goal(tokens=20 * 15), Journal(tmp_path / "j"))
    packing = Packing(16, "concat", "sample", 0, 1)
    found = packing.pack(generated.documents(0, [1]), 20, 0, "self")
    assert all(len(sample.token_ids) == 16 for sample in found.samples)
    assert any(1 in sample.token_ids[1:-1] for sample in found.samples)  # the end of one text, then another
    assert len(generated.samples) < 32


def test_full_length_generations_are_the_samples(tmp_path):
    generated = writer(ScriptedEngine()).run(Goal(tokens=8 * 15), Journal(tmp_path / "j"))
    found = Packing(16, "concat", "sample", 0, 1).pack(generated.documents(0, [1]), 8, 0, "self")
    kept = {s.token_ids for s, v in zip(generated.samples, generated.verdicts, strict=True) if v.keep}
    assert {sample.token_ids for sample in found.samples} == kept


def test_a_fixed_pool_is_made_whole(tmp_path):
    engine = ScriptedEngine()
    generated = writer(engine).run(Goal(tokens=1, generations=30), Journal(tmp_path / "j"))
    assert len(generated.samples) == 30
    assert engine.batches == [8, 8, 8, 6]


def test_an_interrupted_generation_goes_on_where_it_stopped(tmp_path):
    whole = writer(ScriptedEngine()).run(Goal(tokens=21 * 15), Journal(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        writer(ScriptedEngine(fail_after=2)).run(Goal(tokens=21 * 15), Journal(tmp_path / "j"))
    with (tmp_path / "j").open("a") as stream:
        stream.write('{"samples": [{"tok')  # the process died while writing
    engine = ScriptedEngine()
    engine.made = 16
    resumed = writer(engine).run(Goal(tokens=21 * 15), Journal(tmp_path / "j"))
    assert engine.batches == [8, 2]
    assert resumed == whole


def test_a_model_that_always_ends_at_once_is_told_off(tmp_path):
    with pytest.raises(CalibrationError, match="cannot write its own calibration data"):
        writer(ScriptedEngine(length_of=lambda _: 5), batch_size=64).run(Goal(tokens=10**6), Journal(tmp_path / "j"))


def test_the_same_seed_writes_the_same_ids_and_another_does_not(llama):
    engine = TransformersEngine(load_model(llama))
    prompts = [[0, 30 + n, 40] for n in range(4)]
    torch.manual_seed(99)
    first = engine.generate(prompts, 20, Sampling(), 7)
    torch.manual_seed(5)  # the global state is neither read nor changed
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert engine.generate(prompts, 20, Sampling(), 7) == first
    assert torch.equal(torch.rand(1), expected)
    assert engine.generate(prompts, 20, Sampling(), 8) != first
    for prompt, sample in zip(prompts, first, strict=True):
        assert list(sample.token_ids[:3]) == prompt
        assert sample.prompt_tokens == 3
        assert len(sample.token_ids) == 20 if sample.finish == "length" else sample.token_ids[-1] == 1


@pytest.mark.parametrize(
    "other",
    [{"temperature": 5.0}, {"top_k": 1}, {"top_p": 0.01}, {"repetition_penalty": 8.0}],
    ids=lambda o: next(iter(o)),
)
def test_every_sampling_setting_changes_what_is_written(llama, other):
    engine = TransformersEngine(load_model(llama))
    plain = engine.generate([[0, 30, 40]] * 4, 30, Sampling(), 7)
    assert engine.generate([[0, 30, 40]] * 4, 30, Sampling(**other), 7) != plain


def test_scores_are_mean_log_probabilities_whatever_the_batch(llama):
    model = load_model(llama)
    engine = TransformersEngine(model)
    sequences = [[0, 5, 9, 30], [0, 7, 8, 100, 101, 102, 103], [0, 50]]
    together = engine.score(sequences)
    for ids, score in zip(sequences, together, strict=True):
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(logprobs[i, ids[i + 1]].item() for i in range(len(ids) - 1)) / (len(ids) - 1)
        assert score == pytest.approx(expected, abs=1e-4)


def test_outputs_that_are_not_finite_are_an_error(tmp_path):
    model = save_model(CONFIGS["llama"](), tmp_path)
    checkpoint = Checkpoint(model)
    checkpoint.patch({"lm_head.weight": torch.full_like(checkpoint.read("lm_head.weight"), float("nan"))})
    engine = TransformersEngine(load_model(model))
    with pytest.raises(NumericsError, match="became NaN or infinite while it was generating"):
        engine.generate([[0, 3]], 8, Sampling(), 0)
    with pytest.raises(NumericsError, match="not finite on this text"):
        engine.score([[0, 3, 4]])


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("unit", ["paragraph", "document"])
def test_prompts_are_the_first_tokens_after_the_begin_token(text_file, tokens, unit):
    tokenizer, source = tiny_tokenizer(), FileSource(text_file)
    starts = {tuple(tokenizer.encode(t, add_special_tokens=False)[:tokens]) for _, t in source.texts()}
    found = list(itertools.islice(prefixes(source, tokenizer, tokens, unit, 0, 0), 120))
    assert all(prompt[0] == 0 and tuple(prompt[1:]) in starts for prompt in found)
    assert found == list(itertools.islice(prefixes(source, tokenizer, tokens, unit, 0, 0), 120))
    assert found != list(itertools.islice(prefixes(source, tokenizer, tokens, unit, 0, 1), 120))


def test_paragraphs_are_told_apart(tmp_path):
    (tmp_path / "a.txt").write_text("the fox\n\nquick dog\n \nlazy cat")
    source, tokenizer = FileSource(tmp_path / "a.txt"), tiny_tokenizer()
    for unit, count in (("document", 1), ("paragraph", 3)):
        found = itertools.islice(prefixes(source, tokenizer, 1, unit, None, 0), 12)
        assert len({tuple(prompt) for prompt in found}) == count


def test_prompts_that_cannot_be(text_file):
    source, tokenizer = FileSource(text_file), tiny_tokenizer()
    assert next(prefixes(source, tokenizer, 0, "paragraph", 0, 0)) == [0]
    with pytest.raises(UsageError, match="no begin token to start from"):
        prefixes(source, tokenizer, 0, "paragraph", None, 0)
    with pytest.raises(CalibrationError, match="has 5000 tokens; take a shorter prefix"):
        next(prefixes(source, tokenizer, 5000, "document", 0, 0))


@pytest.mark.parametrize(
    "bad", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": float("nan")}]
)
def test_sampling_settings_that_make_no_sense(bad):
    with pytest.raises(UsageError, match="Sampling needs"):
        Sampling(**bad)
