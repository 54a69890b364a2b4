"""Styles: what the engine is asked, in which order and with what, and what becomes of the answers."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers

from conftest import tiny_tokenizer
from secateur.calibration.sample import Sample
from secateur.calibration.sources.base import TextSource
from secateur.cli.ls import ls
from secateur.errors import SecateurError, UsageError
from secateur.generation.engine import Engine, Sampling
from secateur.generation.self_generation import _write_and_score, content_of
from secateur.generation.styles import STYLES
from secateur.generation.styles.base import Material
from secateur.generation.styles.chat import Chat
from secateur.generation.styles.prefix import Prefix
from secateur.generation.styles.random_start import RandomStart
from secateur.generation.styles.self_calibration import SelfCalibration
from secateur.generation.styles.traces import Traces
from secateur.generation.transformers_engine import Penalty, TransformersEngine
from secateur.models.loading import load_model

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{{ bos_token }}[INST] {{ messages[-1]['content'] }} [/INST]"
TASKS = ["the fox", "quick brown dog jumps", "the quick brown fox jumps over the lazy dog " * 8, " lazy\n"]
Written = Callable[[int, int, list[int], int], list[int]]


class Recorder(Engine):
    """Notes what it is asked. ``written``: of the call's number, the row, its prompt and the number of tokens that fit, what
    is written after the prompt; else as many 50s as fit."""

    end_tokens = [1]  # noqa: RUF012 - a plain list is what an engine has

    def __init__(self, written: Written | None = None) -> None:
        self.written = written or (lambda call, row, prompt, room: [50] * room)
        self.calls: list[tuple[list[list[int]], int, Sampling, int]] = []
        self.each: list[bool] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        self.calls.append(([list(prompt) for prompt in prompts], length, sampling, seed))
        self.each.append(each)
        found = []
        for row, prompt in enumerate(prompts):
            room = length - (len(prompt) if each else max(map(len, prompts)))
            assert room > 0
            ids = self.written(len(self.calls) - 1, row, list(prompt), room)
            assert len(ids) <= room
            ended = bool(ids) and ids[-1] in self.end_tokens
            found.append(Sample((*prompt, *ids), len(prompt), "eos" if ended else "length", -1.0, "self"))
        return found

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        return [-2.0] * len(sequences)


class Listed(TextSource):
    def __init__(self, *texts: str, name: str = "listed") -> None:
        self.name, self._texts = name, texts

    def texts(self):
        return [(str(number), text) for number, text in enumerate(self._texts)]


def chat_tokenizer(template: str | None = CHATML) -> transformers.PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def without_begin() -> transformers.PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


def material_for(tokenizer=None, sources=(), seed: int = 0, bos: int | None = 0, prefix_tokens: int = 2) -> Material:
    return Material(tokenizer or tiny_tokenizer(), bos, sources, prefix_tokens, "document", seed)


def first(style, material: Material, count: int) -> list[list[int]]:
    return list(itertools.islice(style.prompts(material), count))


def spell(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def engine(llama) -> TransformersEngine:
    return TransformersEngine(load_model(llama))


# Writing in segments.


def test_the_temperature_falls_along_the_first_tokens_and_nothing_else_changes():
    engine, final = Recorder(), Sampling(temperature=0.5, top_k=7, top_p=0.9, repetition_penalty=1.1)
    style = SelfCalibration(start=2.5, tokens=4)
    found = style.write(engine, [[0], [0]], 20, final, 3, material_for())
    assert [call[2].temperature for call in engine.calls] == [2.5, 2.0, 1.5, 1.0, 0.5]
    assert all(replace(call[2], temperature=0.5) == final for call in engine.calls)
    assert [call[1] for call in engine.calls] == [2, 3, 4, 5, 20]
    assert len({call[3] for call in engine.calls}) == 5
    assert [call[0][0] for call in engine.calls] == [[0] + [50] * written for written in range(5)]
    assert [(len(sample.token_ids), sample.prompt_tokens, sample.finish) for sample in found] == [(20, 1, "length")] * 2


def test_without_hot_tokens_there_is_one_call():
    engine = Recorder()
    SelfCalibration(tokens=0).write(engine, [[0]], 9, Sampling(), 3, material_for())
    RandomStart(greedy=0).write(engine, [[0, 5]], 9, Sampling(), 3, material_for())
    assert [call[1:3] for call in engine.calls] == [(9, Sampling())] * 2


def test_texts_that_end_early_are_not_gone_on_with_and_stay_in_their_places():
    """Row 1 ends with its second token, row 0 with its last but one; row 2 goes on to the end."""

    def written(call, row, prompt, room):
        if prompt[1] == 41 and call == 1:
            return [1]
        return [50, 1] if prompt[1] == 40 and call == 3 else [50] * room

    engine = Recorder(written)
    found = SelfCalibration(tokens=3).write(engine, [[0, 40], [0, 41], [0, 42]], 12, Sampling(), 3, material_for())
    assert [len(call[0]) for call in engine.calls] == [3, 3, 2, 2]
    assert [sample.token_ids[1] for sample in found] == [40, 41, 42]
    assert [(len(sample.token_ids), sample.finish) for sample in found] == [(7, "eos"), (4, "eos"), (12, "length")]
    assert {sample.prompt_tokens for sample in found} == {2}
    assert {sample.mean_logprob for sample in found} == {-1.0}  # what the engine said of the whole text


def test_nothing_is_asked_when_all_texts_have_ended():
    engine = Recorder(lambda *_: [1])
    found = SelfCalibration().write(engine, [[0], [0]], 12, Sampling(), 3, material_for())
    assert len(engine.calls) == 1
    assert [sample.token_ids for sample in found] == [(0, 1)] * 2


def test_a_text_that_is_full_before_its_segments_are_through():
    found = SelfCalibration(tokens=10).write(Recorder(), [[0]], 6, Sampling(), 3, material_for())
    assert [(sample.token_ids, sample.finish) for sample in found] == [((0, 50, 50, 50, 50, 50), "length")]


def test_self_calibration_starts_from_the_begin_token_even_where_the_tokenizer_puts_none_before_text():
    """SmolLM2's and Phi-2's have one and put none; Qwen's have none, and the token is named."""
    own, style = material_for(bos=None), SelfCalibration()
    style.check(own, 9)
    assert first(style, own, 3) == [[own.tokenizer.bos_token_id]] * 3
    named = SelfCalibration(begin="</s>")
    for material in (own, material_for(), material_for(without_begin(), bos=None)):
        named.check(material, 9)
        assert first(named, material, 2) == [[1]] * 2


def test_a_random_start_is_greedy_first():
    engine = Recorder()
    RandomStart(greedy=3).write(engine, [[0, 9], [0, 8]], 20, Sampling(), 3, material_for())
    assert [(call[1], call[2].greedy) for call in engine.calls] == [(5, True), (20, False)]
    assert replace(engine.calls[0][2], greedy=False) == engine.calls[1][2] == Sampling()


def test_random_starts_are_no_special_tokens_and_follow_the_seed():
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([transformers.AddedToken("<|only marked|>", special=True)])
    style, material = RandomStart(), material_for(tokenizer)
    found = first(style, material, 4000)
    assert all(prompt[0] == 0 and len(prompt) == 2 for prompt in found)
    assert {prompt[1] for prompt in found} == set(range(3, 291))  # 0-2 and the three added last are special
    assert first(style, material, 50) == found[:50] != first(style, replace(material, seed=1), 50)
    assert all(len(prompt) == 1 for prompt in first(style, replace(material, bos=None), 5))


@pytest.mark.parametrize("style", [SelfCalibration(tokens=3), RandomStart(), Prefix()], ids=lambda s: type(s).__name__)
def test_the_model_writes_as_the_seed_has_it(engine, style):
    material = material_for(sources=[(Listed("the quick brown fox", "lazy dog jumps"), 1.0)])
    prompts = first(style, material, 4)
    one, again, other = (style.write(engine, prompts, 24, Sampling(), seed, material) for seed in (1, 1, 2))
    assert one == again != other
    for prompt, sample in zip(prompts, one, strict=True):
        assert list(sample.token_ids[: len(prompt)]) == prompt
        assert sample.prompt_tokens == len(prompt)
        assert len(sample.token_ids) == 24 if sample.finish == "length" else sample.token_ids[-1] == 1
    scores = engine.score([sample.token_ids for sample in one])
    known = [
        score if sample.mean_logprob is None else sample.mean_logprob for sample, score in zip(one, scores, strict=True)
    ]
    assert known == pytest.approx(scores, abs=1e-4)


def test_greedy_tokens_are_the_likeliest_whatever_the_seed(engine):
    prompts = [[0, 40], [0, 41]]
    one, other = (RandomStart(greedy=5).write(engine, prompts, 24, Sampling(), seed, material_for()) for seed in (1, 2))
    assert [sample.token_ids[:7] for sample in one] == [sample.token_ids[:7] for sample in other]
    assert [sample.token_ids[7:] for sample in one] != [sample.token_ids[7:] for sample in other]
    ids = prompts[0]
    for _ in range(5):
        with torch.inference_mode():
            ids = [*ids, int(engine.model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert list(one[0].token_ids[:7]) == ids


def test_prompts_of_different_lengths_are_continued_as_if_alone(engine):
    prompts, greedy = [[0, 40], [0, 41, 60, 61, 62, 63], [0, 42, 70]], Sampling(greedy=True)
    together = engine.generate(prompts, 16, greedy, 0)
    for prompt, sample in zip(prompts, together, strict=True):
        alone = engine.generate([prompt], len(prompt) + 10, greedy, 0)[0]  # 16 is for the longest
        assert alone.token_ids == sample.token_ids
        assert alone.prompt_tokens == sample.prompt_tokens == len(prompt)


def test_each_prompt_goes_on_to_the_whole_length_whatever_the_others(engine):
    """As far as the model has positions for a batch that steps together."""
    prompts, greedy = [[0, 40], [0, 41, 60, 61, 62, 63], [0, 42, 70]], Sampling(greedy=True)
    together = engine.generate(prompts, 16, greedy, 0, each=True)
    for prompt, sample in zip(prompts, together, strict=True):
        alone = engine.generate([prompt], 16, greedy, 0)[0]
        assert alone.token_ids == sample.token_ids
        assert len(sample.token_ids) == 16 or sample.finish == "eos"
        assert sample.mean_logprob == pytest.approx(engine.score([sample.token_ids])[0], abs=1e-4)
    positions = engine.model.config.max_position_embeddings
    full = engine.generate(prompts, positions, greedy, 0, each=True)
    assert [len(sample.token_ids) for sample in full if sample.finish == "length"]
    assert all(len(sample.token_ids) <= positions - 6 + sample.prompt_tokens for sample in full)


@pytest.mark.parametrize("style", [Chat(user_tokens=30), Traces()], ids=["chat", "traces"])
def test_answers_may_be_as_long_as_there_is_room_after_their_own_prompt(style):
    """A long question elsewhere in the batch takes nothing from a short one's answer."""
    tokenizer = chat_tokenizer()
    texts = ["the fox", "the quick brown fox jumps over the lazy dog"]

    def written(call, row, prompt, room):
        asking = isinstance(style, Chat) and call == 0
        return [*spell(tokenizer, texts[row]), 292] if asking else [70] * room

    recorder, material = Recorder(written), material_for(tokenizer, [(Listed(*texts), 1.0)])
    found = style.write(recorder, first(style, material, 2), 120, Sampling(), 5, material)
    assert recorder.each[-1]
    assert len({sample.prompt_tokens for sample in found}) == 2
    assert [len(sample.token_ids) for sample in found] == [120, 120]


def test_the_repetition_penalty_spares_end_tokens_and_padding_of_every_beam():
    ids = torch.tensor([[9, 0, 5, 1, 7], [0, 6, 1, 1, 8]])
    scores = torch.linspace(-3, 3, 20).repeat(4, 1)
    found = Penalty(2.0, torch.tensor([1, 0]), [1, 19])(ids.repeat_interleave(2, dim=0), scores)  # two beams each
    assert torch.equal(scores[0], torch.linspace(-3, 3, 20))
    for row, punished in enumerate([{0, 5, 7}, {0, 5, 7}, {0, 6, 8}, {0, 6, 8}]):  # 9 is padding, 1 ends texts
        assert {token for token in range(20) if found[row, token] != scores[row, token]} == punished


def test_the_repetition_penalty_is_transformers_own_where_no_end_token_stands_in_a_prompt(engine):
    """The paper's recipe: the ids are those of plain ``generate``; after a turn's end token they are others."""
    sampling, end = Sampling(repetition_penalty=1.7), engine.end_tokens[0]

    def plain(prompt: list[int]) -> list[list[int]]:
        config = transformers.GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=30,
            eos_token_id=end,
            pad_token_id=end,
        )
        torch.manual_seed(4)
        ids = torch.tensor([prompt] * 8)
        rows = engine.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config).tolist()
        return [row[: row.index(end, len(prompt)) + 1] if end in row[len(prompt) :] else row for row in rows]

    def ours(prompt: list[int]) -> list[list[int]]:
        return [list(one.token_ids) for one in engine.generate([prompt] * 8, len(prompt) + 30, sampling, 4)]

    assert ours([0, 40, 50]) == plain([0, 40, 50])
    assert ours([0, 40, end, 50]) != plain([0, 40, end, 50])


def test_prefix_sources_take_turns_by_weight():
    tokenizer = tiny_tokenizer()
    one, other = Listed("aaaa", "abab", name="a"), Listed("bbbb", "bcbc", "bdbd", name="b")
    material = material_for(tokenizer, [(one, 3.0), (other, 1.0)], prefix_tokens=1)
    found = [prompt[1] for prompt in first(Prefix(), material, 40)]
    starts = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab"]
    assert [found.count(start) for start in starts] == [30, 10]
    for count in range(1, 41):  # at no time is a source more than one prompt away from its share
        assert abs(found[:count].count(starts[0]) - 0.75 * count) <= 1
    with pytest.raises(UsageError, match=r"positive numbers; found \[1.0, 0.0\]"):
        first(Prefix(), replace(material, sources=[(one, 1.0), (other, 0.0)]), 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Traces(0), "prompt_tokens >= 1; found 0"),
        (lambda: Chat(user_tokens=0), "user_tokens >= 1; found 0"),
        (lambda: RandomStart(-1), "greedy >= 0; found -1"),
        (lambda: SelfCalibration(start=0), "start > 0 and tokens >= 0; found 0"),
        (
            lambda: SelfCalibration().check(material_for(without_begin(), bos=None), 9),
            "has none; name the token that stands before",
        ),
        (lambda: SelfCalibration(begin="fox dog").check(material_for(), 9), "begin 'fox dog' is [2-9] tokens"),
        (lambda: SelfCalibration(begin="").check(material_for(), 9), "begin '' is 0 tokens"),
        (lambda: SelfCalibration().check(material_for(), 1), "leave nothing to write after the begin token"),
        (
            lambda: RandomStart().check(material_for(), 6),
            "leave nothing to sample after a random token and 4 greedy ones",
        ),
        (lambda: Prefix().check(material_for(), 3), "leave nothing to generate after prompts of 3"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(SecateurError, match=words):
        make()


@pytest.mark.parametrize(
    ("ids", "bos", "ends", "content", "prompt"),
    [
        ((5, 7, 8, 1), None, [1], (5, 7, 8), 1),  # SmolLM2's begin token opens a turn: it stays
        ((1, 7, 8, 1), None, [1], (7, 8), 0),  # GPT-2's also ends texts: it is the end of the text before
        ((0, 7, 8, 1), 0, [1], (7, 8), 0),  # Llama's is put in front of every sample later
        ((1, 1), None, [1], (), 0),
    ],
)
def test_a_begin_token_that_also_ends_texts_is_no_content(ids, bos, ends, content, prompt):
    assert content_of(Sample(ids, 1, "eos"), bos, ends) == (content, prompt)


# All of them.


def test_every_style_is_listed_by_the_first_line_of_its_docstring(capsys):
    for name, entry in STYLES.entries().items():
        assert (STYLES.load(name).__doc__ or "").splitlines()[0] == entry.summary
    ls("styles")
    assert "traces" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(STYLES.entries()))
def test_a_batch_can_be_written_in_another_process(name):
    """What travels there: the style and the material without its sources, which may be open files."""
    style = STYLES.load(name)()
    material = material_for(chat_tokenizer(), [(Listed(*TASKS[:2]), 1.0)])
    prompts = first(style, material, 2)
    work = partial(_write_and_score, style, 400, Sampling(), material.without_sources())
    here, there = (sent(Recorder(), (prompts, 3)) for sent in (work, pickle.loads(pickle.dumps(work))))
    assert here == there
    assert len(here) == 2
    assert pickle.loads(pickle.dumps(work)).args[3].sources == ()
