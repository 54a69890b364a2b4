"""Scores of samples: after the begin token where the tokenizer puts one before text, never after two, ids untouched."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import recorded_vllm
from conftest import CONFIGS, save_model, tiny_tokenizer
from secateur.calibration.filters.perplexity import PerplexityFilter
from secateur.calibration.sample import Sample
from secateur.cli.main import main
from secateur.diagnosis.base import Options, Subject
from secateur.diagnosis.likelihood import LIKELIHOOD
from secateur.generation.engine import Engine, Sampling
from secateur.generation.self_generation import Goal, SelfGeneration
from secateur.generation.styles.base import Material
from secateur.generation.styles.prefix import Prefix
from secateur.generation.styles.self_calibration import SelfCalibration
from secateur.journal import Journal
from secateur.models.begin import Begin
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import resolve_model
from secateur.pipeline.context import ModelContext
from secateur.pipeline.recipe import Recipe

BARE = [(40, 41, 42, 43), (50, 51), tuple(range(60, 90)), (7,)]
BEGUN = [(0, *ids) for ids in BARE]
GREEDY = Sampling(greedy=True)


def plain_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


def samples(sequences):
    return [Sample(tuple(ids)) for ids in sequences]


def context_of(folder, tokenizer=None):
    return ModelContext(Recipe.model_validate({"model": str(folder)}), folder, tokenizer or tiny_tokenizer())


def by_hand(model, ids):
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
    return logits.gather(1, torch.tensor(ids[1:])[:, None]).mean().item()


def test_a_sequence_is_put_after_the_begin_token_once_and_within_the_positions():
    begin = Begin(0, 4)
    assert begin.before([5, 6]) == (0, 5, 6)
    assert begin.before([0, 5, 6]) == (0, 5, 6)
    assert begin.before([5, 6, 7, 8]) == (0, 5, 6, 7)  # the last token has no place
    assert begin.before([0, 5, 6, 7, 8]) == (0, 5, 6, 7, 8)
    assert begin.before([]) == (0,)
    assert Begin(None, 4).before([5, 6, 7, 8, 9]) == (5, 6, 7, 8, 9)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt"])
def test_samples_with_and_without_the_begin_token_are_scored_alike(name, tmp_path):
    context = context_of(save_model(CONFIGS[name](), tmp_path / name))
    bare, begun = samples(BARE), samples(BEGUN)
    expected = [by_hand(context.model, ids) for ids in BEGUN]
    assert context.mean_logprobs(bare) == pytest.approx(expected, abs=1e-4)
    assert context.mean_logprobs(begun) == pytest.approx(expected, abs=1e-4)
    for plus in (True, False):
        assert context.min_k(bare, 0.5, plus) == pytest.approx(context.min_k(begun, 0.5, plus), abs=1e-4)
    np.testing.assert_allclose(
        context.gradients(bare, 16, False), context.gradients(begun, 16, False), rtol=1e-3, atol=1e-5
    )
    assert [sample.token_ids for sample in context.scored(bare)] == BARE  # identity is ids, and those stay
    assert [context.counted(sample) for sample in (*bare, *begun)] == 2 * [4, 2, 30, 1]
    # What a set does inside the model is what pruning will see of it: as it is.
    assert not np.allclose(context.activations(bare[:1], 16), context.activations(begun[:1], 16))


def test_without_a_begin_token_nothing_is_put_before_a_sample(llama):
    context = context_of(llama, plain_tokenizer())
    found = context.mean_logprobs(samples(BARE[:3]))
    assert found == pytest.approx([by_hand(context.model, ids) for ids in BARE[:3]], abs=1e-4)
    assert [context.counted(sample) for sample in samples(BARE)] == [3, 1, 29, 0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_sample_that_fills_the_positions_is_scored_but_for_its_last_token(name, tmp_path):
    """GPT-2 and OPT have a table of positions: one more than it has would be an error."""
    context = context_of(save_model(CONFIGS[name](), tmp_path / name))
    (full,) = samples([range(100, 164)])
    expected = by_hand(context.model, (0, *full.token_ids[:-1]))
    assert context.mean_logprobs([full]) == pytest.approx([expected], abs=1e-4)
    assert context.counted(full) == 63
    assert len(context.min_k([full], 0.5)) == len(context.gradients([full], 8, False)) == 1


def test_the_filter_sees_no_difference_and_the_set_keeps_its_ids(llama):
    context = context_of(llama)
    judge = PerplexityFilter(0.4)
    one, other = (judge.judge(samples(ids), context) for ids in (BARE, BEGUN))
    assert [verdict.keep for verdict in one] == [verdict.keep for verdict in other]
    assert [verdict.value for verdict in one] == pytest.approx([verdict.value for verdict in other], rel=1e-4)


def test_the_likelihood_of_a_profile_is_over_all_tokens_after_the_begin_token(llama):
    context = context_of(llama)
    expected = math.exp(
        -sum(by_hand(context.model, ids) * (len(ids) - 1) for ids in BEGUN) / sum(len(ids) - 1 for ids in BEGUN)
    )
    for ids in (BARE, BEGUN):
        found = LIKELIHOOD.look(Subject(samples(ids), context, None, None, Options())).values
        assert found["perplexity"] == pytest.approx(expected, rel=1e-4)


# While writing


class Template(Prefix):
    """A style whose prompts begin as a chat template without the begin token does."""

    def prompts(self, material):
        while True:
            yield [60, 61]


@pytest.fixture(params=["transformers", "vllm"])
def engine(request, llama, monkeypatch) -> Engine:
    if request.param == "transformers":
        from secateur.generation.transformers_engine import Transformers

        return Transformers().open(llama, "cpu", "float32")
    from secateur.generation.vllm_engine import VLLM

    for name, module in recorded_vllm.modules().items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
    return VLLM(max_length=24).open(llama, "cpu", "float32")


@pytest.mark.parametrize("style", [Prefix, Template])
def test_what_is_written_without_the_begin_token_is_scored_after_it(style, engine, llama, text_file, tmp_path):
    from secateur.calibration.sources.resolve import resolve_text_source

    source = [(resolve_text_source(str(text_file)), 1.0)]
    material = Material(tiny_tokenizer(), 0, source, 2, "document", 0, 64)
    context = context_of(llama)
    prompts = style().prompts(material)
    writer = SelfGeneration(engine, style(), prompts, 24, GREEDY, [], 4, 0, material, context)
    found = writer.run(Goal(1, generations=6), Journal(tmp_path / "journal")).samples
    assert {sample.token_ids[0] for sample in found} == {0 if style is Prefix else 60}
    for sample in found:
        ids = sample.token_ids if style is Prefix else (0, *sample.token_ids)
        expected = by_hand(context.model, ids)
        assert sample.mean_logprob == pytest.approx(expected, abs=1e-3)


# What a set's digest says of it


def scored(folder, **calibration):
    recipe = Recipe.model_validate({"model": str(folder), "calibration": {"samples": 4, "length": 16} | calibration})
    return plan_calibration(recipe, resolve_model(str(folder))).spec.get("scored")


def test_the_digest_of_a_set_changes_only_where_scores_can(tmp_path, text_file):
    adds = save_model(CONFIGS["llama"](), tmp_path / "adds")
    chat = save_model(CONFIGS["llama"](), tmp_path / "chat")
    written = save_model(CONFIGS["llama"](), tmp_path / "written")
    for folder, start in ((chat, ""), (written, "<s>")):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = start + "{% for one in messages %}[{{ one.content }}]{% endfor %}>"
        tokenizer.save_pretrained(folder)
    plain = save_model(CONFIGS["llama"](), tmp_path / "plain")
    plain_tokenizer().save_pretrained(plain)
    text = {"source": str(text_file)}
    judged = {"filters": ["perplexity"]}
    own = {"source": "self", "generation": {"prefixes": str(text_file)}}
    talk = {"length": 40, "generation": {"prefixes": str(text_file), "style": {"name": "chat", "user_tokens": 8}}}
    solve = {"length": 60, "generation": {"prefixes": str(text_file), "style": {"name": "traces", "prompt_tokens": 32}}}
    same = [
        (adds, text | judged),
        (adds, text | {"bos": "none"}),
        (adds, own),
        (adds, own | {"bos": "none"}),  # what is judged is what was written, which begins
        (adds, solve),
        (adds, own | {"generation": {"style": "self-calibration"}}),
        (plain, own | {"generation": {"style": "self-calibration"}}),
        (written, talk),
        (written, solve),
        (plain, text | judged | {"bos": "none"}),
    ]
    for folder, asked in same:
        assert scored(folder, **asked) is None, asked
    changed = [
        (adds, text | judged | {"bos": "none"}),
        (adds, text | judged | {"bos": "document"}),
        (adds, text | judged | {"packing": "paper"}),
        (adds, text | {"bos": "none", "selection": "lowest-perplexity"}),
        (adds, own | {"bos": "none", "selection": "min-k"}),
        (adds, own | {"generation": {"style": {"name": "self-calibration", "begin": "</s>"}}}),
        (chat, talk),
        (chat, solve),
    ]
    for folder, asked in changed:
        assert scored(folder, **asked) == "after the begin token", asked


def test_a_begin_token_that_the_tokenizer_does_not_name_is_still_put_before_samples(tmp_path, text_file):
    """Its template has it, and its settings do not say so."""
    import transformers

    folder = save_model(CONFIGS["llama"](), tmp_path / "model")
    inner = tiny_tokenizer().backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)
    place = tmp_path / "set"
    words = ["generate", str(folder), "--calibration", str(text_file), "--out", str(place)]
    for one in ("calibration.samples=3", "calibration.length=12", "calibration.filters=[perplexity]"):
        words += ["--set", one]
    assert main(words) == 0
    ids = [json.loads(line)["token_ids"] for line in (place / "samples.jsonl").read_text().splitlines()]
    assert [row[0] for row in ids] == [0, 0, 0]
    assert all(0 not in row[1:] for row in ids)
    material = Material(transformers.AutoTokenizer.from_pretrained(folder), 0, (), 0, "document", 0)
    assert material.tokenizer.bos_token_id is None
    assert next(SelfCalibration().prompts(material)) == [0]
