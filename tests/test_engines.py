"""Engines: the same ids and scores whatever runs the model, scores for free, sentences for what cannot be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import recorded_vllm
from conftest import CONFIGS, save_model
from secateur.errors import NumericsError, RecipeError, UsageError
from secateur.generation.engine import Sampling, batch_seed
from secateur.generation.engines import ENGINES
from secateur.generation.transformers_engine import Transformers, TransformersEngine
from secateur.generation.vllm_engine import VLLM
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model
from secateur.pipeline.components import make_engine
from secateur.pipeline.recipe import Recipe

PROMPTS = [[0, 30, 40], [0, 31], [0, 32, 41, 50, 60], [0, 33, 42]]
ENDS = list(range(1, 300, 11))  # so many that texts end early
GREEDY = Sampling(greedy=True)
DRAWN = Sampling(repetition_penalty=1.0)


def opened(settings, folder: Path):
    engine = settings.open(folder, "cpu", "float32")
    engine.end_tokens = ENDS
    return engine


@pytest.fixture
def vllm(monkeypatch):
    for name, module in recorded_vllm.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def broken(tmp_path):
    """A model whose outputs are NaN."""
    model = save_model(CONFIGS["llama"](), tmp_path)
    checkpoint = Checkpoint(model)
    checkpoint.patch({"lm_head.weight": torch.full_like(checkpoint.read("lm_head.weight"), float("nan"))})
    return model


@pytest.mark.parametrize("sampling", [Sampling(), GREEDY, DRAWN], ids=["penalised", "greedy", "drawn"])
def test_scores_on_the_way_are_those_of_a_pass_of_its_own(any_model, sampling):
    engine = opened(Transformers(), any_model)
    samples = engine.generate(PROMPTS, 24, sampling, 3)
    scores = engine.score([sample.token_ids for sample in samples])
    assert [sample.mean_logprob for sample in samples] == pytest.approx(scores, abs=1e-3)
    assert not engine.model._forward_hooks


def test_texts_that_end_at_different_lengths_and_begin_tokens_alone_are_scored_too(llama):
    engine = opened(Transformers(), llama)
    samples = [*engine.generate(PROMPTS, 40, DRAWN, 5), *engine.generate([[0]] * 4, 40, DRAWN, 6)]
    assert len({len(sample.token_ids) for sample in samples}) > 3
    scores = engine.score([sample.token_ids for sample in samples])
    assert [sample.mean_logprob for sample in samples] == pytest.approx(scores, abs=1e-4)


def test_with_options_nothing_is_scored_on_the_way(llama):
    engine = opened(Transformers(), llama)
    beams = engine.generate(PROMPTS, 16, Sampling(options={"num_beams": 3}), 3)
    assert [sample.mean_logprob for sample in beams] == [None] * 4


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_outputs_that_are_not_finite_end_every_way_of_writing(broken, sampling, vllm):
    with pytest.raises(NumericsError, match="became NaN or infinite while it was generating"):
        opened(Transformers(), broken).generate([[0]], 8, sampling, 0)
    if sampling.greedy:
        engine = opened(VLLM(), broken)
        with pytest.raises(NumericsError, match="while vLLM was generating"):
            engine.generate([[0, 3]], 8, sampling, 0)
        with pytest.raises(NumericsError, match="not finite on this text"):
            engine.score([[0, 3, 4]])


def test_continuous_batching_writes_the_same_greedy_texts(llama):
    plain, continuous = opened(Transformers(), llama), opened(Transformers(continuous=True), llama)
    expected = plain.generate(PROMPTS, 24, GREEDY, 0)
    found = continuous.generate(PROMPTS, 24, GREEDY, 0)
    # Plain batches pad on the left, so each text may have as many new tokens as the longest prompt leaves.
    assert found == [replace(sample, mean_logprob=None) for sample in expected]
    assert {sample.finish for sample in found} == {"eos", "length"}


def test_every_engine_brings_each_text_to_the_whole_length(llama, vllm):
    engines = [opened(settings, llama) for settings in (Transformers(), Transformers(continuous=True), VLLM())]
    expected = engines[0].generate(PROMPTS, 24, GREEDY, 0, each=True)
    assert [len(one.token_ids) for one in expected if one.finish == "length"]
    assert {len(one.token_ids) for one in expected if one.finish == "length"} == {24}
    for engine in engines[1:]:
        found = engine.generate(PROMPTS, 24, GREEDY, 0, each=True)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_continuous_batching_follows_the_seed_and_leaves_the_global_state(llama):
    engine = opened(Transformers(continuous=True), llama)
    first = engine.generate(PROMPTS, 24, DRAWN, 7)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert engine.generate(PROMPTS, 24, DRAWN, 7) == first
    assert torch.equal(torch.rand(1), expected)
    assert engine.generate(PROMPTS, 24, DRAWN, 8) != first


@pytest.mark.parametrize("other", [{"repetition_penalty": 1.2}, {"min_p": 0.1}, {"options": {"typical_p": 0.9}}])
def test_continuous_batching_refuses_what_it_would_leave_out(llama, other):
    engine = opened(Transformers(continuous=True), llama)
    with pytest.raises(UsageError, match=r"draws by temperature, top_k and top_p alone; found .* Set"):
        engine.generate(PROMPTS, 24, replace(DRAWN, **other), 0)


def test_continuous_batching_fails_with_a_sentence_where_outputs_are_not_finite(broken):
    with pytest.raises(NumericsError, match="became NaN or infinite"):
        opened(Transformers(continuous=True), broken).generate(PROMPTS, 12, DRAWN, 0)


def test_plain_batches_stay_the_default(llama):
    assert not opened(Transformers(), llama).continuous
    assert not opened(Transformers(continuous=False), llama).continuous


def test_vllm_writes_and_scores_as_transformers_does(llama, vllm):
    plain, other = opened(Transformers(), llama), opened(VLLM(), llama)
    expected, found = plain.generate(PROMPTS, 24, GREEDY, 0), other.generate(PROMPTS, 24, GREEDY, 0)
    assert [replace(sample, mean_logprob=None) for sample in found] == [
        replace(sample, mean_logprob=None) for sample in expected
    ]
    assert {sample.finish for sample in found} == {"eos", "length"}
    sequences = [
        *(sample.token_ids for sample in found),
        [0],
        [0, 9],
        list(range(3, 67)),
    ]  # the last fills all positions
    scores = plain.score(sequences)
    assert other.score(sequences) == pytest.approx(scores, abs=1e-4)
    assert [sample.mean_logprob for sample in found] == pytest.approx(scores[:4], abs=1e-4)


def test_a_text_of_vllm_follows_from_its_seed_and_row_alone(llama, vllm):
    engine = opened(VLLM(), llama)
    first = engine.generate(PROMPTS, 24, Sampling(), 7)
    assert engine.generate(PROMPTS, 24, Sampling(), 7) == first
    assert engine.generate([PROMPTS[0], [0, 99, 98], PROMPTS[2]], 24, Sampling(), 7)[::2] == first[:3:2]
    assert engine.generate(PROMPTS, 24, Sampling(), 8) != first
    same = engine.generate([[0, 30, 40]] * 4, 24, Sampling(), 7)
    assert len({sample.token_ids for sample in same}) == 4


def test_vllm_is_asked_for_what_the_recipe_says(llama, vllm):
    settings = VLLM(2, 0.5, 48, {"max_num_seqs": 3})
    engine = settings.open(llama, "cpu", "bfloat16")
    asked = recorded_vllm.LLM.arguments
    assert asked["tensor_parallel_size"] == 2
    assert asked["memory"] == 0.5
    assert asked["max_model_len"] == 49  # one more for a begin token
    assert asked["max_num_seqs"] == 3
    assert asked["dtype"] == "bfloat16"
    assert engine.end_tokens == [1]
    engine.generate(PROMPTS, 20, Sampling(0.7, 0, 0.8, 0.1, 1.1, options={"presence_penalty": 0.5}), 4)
    for row, params in enumerate(recorded_vllm.LLM.seen):
        assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.7, 0, 0.8, 0.1)
        assert (params.repetition_penalty, params.presence_penalty) == (1.1, 0.5)
        assert (params.seed, params.max_tokens) == (batch_seed(4, row), 15)
        assert params.stop_token_ids == [1]
        assert params.ignore_eos


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            Sampling(options={"presence_penalti": 1.0}),
            r"no parameter of vllm.SamplingParams; did you mean 'presence_penalty'",
        ),
        (Sampling(options={"top_k": 3}), "set by Secateur itself and no argument of vllm.SamplingParams"),
        (Sampling(temperature=3.0), r"vLLM refuses what was asked of it: temperature must be in \[0, 2\]"),
        (Sampling(options={"stop": ["x"]}), "only supported when detokenize is True"),
    ],
)
def test_what_vllm_cannot_draw_is_a_sentence(llama, vllm, sampling, message):
    with pytest.raises(UsageError, match=message):
        opened(VLLM(), llama).generate(PROMPTS, 24, sampling, 0)


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        (VLLM(options={"max_num_sequences": 3}), "cpu", "unexpected keyword argument 'max_num_sequences'"),
        (VLLM(options={"dtype": "half"}), "cpu", "set by Secateur itself and no argument of vllm.LLM"),
        (VLLM(), "cuda:1", "runs on cpu, and picks its devices itself; the device asked for is 'cuda:1'"),
        (VLLM(), "cuda", "runs on cpu"),
    ],
)
def test_what_vllm_cannot_open_is_a_sentence(llama, vllm, settings, device, message):
    with pytest.raises(UsageError, match=message):
        settings.open(llama, device, "auto")


@pytest.mark.parametrize("bad", [{"tensor_parallel": 0}, {"memory": 1.5}, {"max_length": 1}])
def test_settings_of_vllm_that_make_no_sense(bad):
    with pytest.raises(UsageError, match="engine vllm needs tensor_parallel >= 1"):
        VLLM(**bad)


@pytest.mark.parametrize("name", ["vllm", "ray"])
def test_an_engine_whose_library_is_not_here_says_what_to_install(llama, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"The engine {name} needs .*pip install {name}, or use"):
        ENGINES.load(name)().open(llama, "cpu", "auto")


def test_an_option_that_transformers_does_not_know_or_that_is_ours(llama):
    engine = TransformersEngine(load_model(llama))
    for name in ("no_repeat_ngram", "max_new_tokens", "temperature"):
        with pytest.raises(UsageError, match=f"The option '{name}' of the transformers engine"):
            engine.generate(PROMPTS, 24, Sampling(options={name: 3}), 0)


def test_a_recipe_names_engines_and_their_settings():
    def engine(named):
        return make_engine(Recipe.model_validate({"calibration": {"generation": {"engine": named}}}))

    assert engine("transformers") == Transformers()
    assert engine({"name": "transformers", "continuous": True}) == Transformers(continuous=True)
    assert engine({"name": "vllm", "tensor_parallel": 2, "options": {"max_num_seqs": 8}}).options == {"max_num_seqs": 8}
    inner = {"name": "vllm", "memory": 0.5}
    assert engine({"name": "ray", "workers": 2, "gpus": 1.0, "engine": inner}).engine == inner
    with pytest.raises(RecipeError, match="continuous"):
        engine({"name": "transformers", "continuous": "yes"})
    with pytest.raises(UsageError, match="has no setting 'memori'; did you mean 'memory'"):
        engine({"name": "ray", "engine": {"name": "vllm", "memori": 0.5}})
