"""Conversations: an instruction-tuned model asks and answers, or solves tasks; prompt and completion stay apart to the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from secateur import Recipe
from secateur.calibration.filters.base import Verdict
from secateur.calibration.packing import Packing
from secateur.calibration.sample import Sample, read_samples
from secateur.errors import CalibrationError, UsageError
from secateur.generation.engine import Sampling
from secateur.generation.self_generation import Generated
from secateur.generation.styles.chat import TRIES, Chat
from secateur.generation.styles.template import user_turn
from secateur.generation.styles.traces import Traces
from secateur.generation.transformers_engine import TransformersEngine
from secateur.models.loading import load_model
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import resolve_model
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter
from test_styles import CHATML, PLAIN, TASKS, Listed, Recorder, chat_tokenizer, first, material_for, spell


@pytest.fixture(scope="module")
def engine(llama) -> TransformersEngine:
    return TransformersEngine(load_model(llama))


# Chat.


def test_a_question_and_its_answer():
    """The engine writes another question for each row, ended by the template's own token, which it does not know of."""
    tokenizer = chat_tokenizer()
    texts = ["the quick fox\n", "  lazy dog", "brown"]

    def written(call, row, prompt, room):
        return [*spell(tokenizer, texts[row]), 292, 60] if call == 0 else [70, 71, 1]

    engine, style, material = Recorder(written), Chat(system="Be kind.", user_tokens=30), material_for(tokenizer)
    start = "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    prompts = first(style, material, 3)
    assert [tokenizer.decode(prompt) for prompt in prompts] == [start] * 3
    found = style.write(engine, prompts, 90, Sampling(top_k=9), 5, material)
    (asked, reach, *_), (questions, length, *_) = engine.calls
    assert (asked, reach, length) == (prompts, len(prompts[0]) + 30, 90)
    assert all(call[2].top_k == 9 for call in engine.calls)
    assert engine.calls[0][3] != engine.calls[1][3]
    for text, question, sample in zip(texts, questions, found, strict=True):
        whole = f"{start}{text.strip()}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(question) == whole
        assert question == spell(tokenizer, whole)
        assert sample.token_ids == (*question, 70, 71, 1)
        assert (sample.prompt_tokens, sample.finish) == (len(question), "eos")


def test_the_template_is_rendered_as_transformers_does():
    tokenizer = chat_tokenizer()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "lazy dog"}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    written = lambda call, row, prompt, room: [*spell(tokenizer, "lazy dog"), 1] if call == 0 else [70, 1]  # noqa: E731
    engine, material = Recorder(written), material_for(tokenizer)
    Chat().write(engine, first(Chat(), material, 1), 400, Sampling(), 5, material)
    assert engine.calls[1][0] == [asked]


def test_an_empty_question_is_asked_for_again_and_at_last_left_empty():
    tokenizer = chat_tokenizer()

    def written(call, row, prompt, room):
        if call == 0:
            return [[292], [*spell(tokenizer, "fox"), 292], [*spell(tokenizer, " \n"), 292]][row]
        if call == 1:
            return [[1], spell(tokenizer, "dog")][row]
        return [1] if call < TRIES else [70, 1]

    engine, material = Recorder(written), material_for(tokenizer)
    found = Chat().write(engine, first(Chat(), material, 3), 400, Sampling(), 5, material)
    assert [len(call[0]) for call in engine.calls] == [3, 2, 1, 1, 3]
    assert len({call[3] for call in engine.calls}) == TRIES + 1
    said = [tokenizer.decode(question).split("user\n")[1].split("<|im_end|>")[0] for question in engine.calls[-1][0]]
    assert said == ["", "fox", "dog"]
    assert [sample.token_ids[-2:] for sample in found] == [(70, 1)] * 3


def test_an_end_of_turn_in_plain_text_ends_the_question():
    tokenizer = chat_tokenizer(PLAIN)
    written = lambda call, *_: spell(tokenizer, "fox? [/INST] the dog. [INST] a") if call == 0 else [70, 1]  # noqa: E731
    engine, material = Recorder(written), material_for(tokenizer)
    Chat().write(engine, first(Chat(), material, 1), 400, Sampling(), 5, material)
    assert tokenizer.decode(engine.calls[1][0][0]) == "<s>[INST] fox? [/INST]"


def test_a_question_that_grows_when_it_is_tokenised_anew_is_cut():
    """Single bytes that are no text become three tokens each."""
    tokenizer = chat_tokenizer()
    broken = next(token for token in range(3, 291) if tokenizer.decode([token]) == "\ufffd")
    engine = Recorder(lambda call, row, prompt, room: [broken, 50] * (room // 2) if call == 0 else [70] * room)
    style, material = Chat(user_tokens=20), material_for(tokenizer)
    length = len(spell(tokenizer, user_turn(tokenizer).around(""))) + 21
    style.check(material, length)
    found = style.write(engine, first(style, material, 2), length, Sampling(), 5, material)
    assert all(length - 3 <= len(question) < length for question in engine.calls[1][0])
    assert all(tokenizer.decode(question).endswith("<|im_start|>assistant\n") for question in engine.calls[1][0])
    assert {len(sample.token_ids) for sample in found} == {length}
    with pytest.raises(UsageError, match=f"Samples of {length - 1} tokens leave nothing for an answer"):
        style.check(material, length - 1)


def test_a_template_that_shows_the_day_shows_the_same_day_every_day():
    tokenizer = chat_tokenizer("{{ date_string or strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}")
    assert user_turn(tokenizer).before == "26 Jul 2024 "


@pytest.mark.parametrize(
    ("template", "system", "words"),
    [
        (None, None, "has no chat template, .* use the style prefix"),
        (
            "{{ raise_exception('System role not supported') }}",
            "x",
            "rendered: System role not supported. Leave out the sys",
        ),
        ("{% if %}", None, "cannot be rendered: .*Expected an expression.* Mend it, or use the style prefix"),
        ("{{ messages[0]['content'].nothing.more }}", None, "cannot be rendered: .*nothing"),
        ("Hello", None, "shows what the user says 0 times, not once"),
        ("{% for i in [1, 2] %}{{ messages[0]['content'] }}{% endfor %}", None, "shows what the user says 2 times"),
    ],
)
def test_templates_that_are_no_use(template, system, words):
    material = material_for(chat_tokenizer(template), [(Listed("fox"), 1.0)])
    with pytest.raises(UsageError, match=words):
        Chat(system=system).check(material, 2000)
    if system is None:
        with pytest.raises(UsageError, match=words):
            Traces(template="always").check(material, 2000)


def test_a_template_with_nothing_to_start_from():
    material = material_for(chat_tokenizer("{{ messages[-1]['content'] }} ->"), bos=None)
    with pytest.raises(UsageError, match="nothing before what the user says, and the tokenizer no begin token"):
        Chat().check(material, 2000)
    assert first(Chat(), replace(material, bos=0), 1) == [[0]]


def test_the_model_chats(engine):
    style, material = Chat(user_tokens=8), material_for(chat_tokenizer())
    prompts = first(style, material, 4)
    one, again, other = (style.write(engine, prompts, 60, Sampling(), seed, material) for seed in (1, 1, 2))
    assert one == again != other
    assert max(len(sample.token_ids) for sample in one) == 60 or all(sample.finish == "eos" for sample in one)
    for sample in one:
        assert sample.prompt_tokens < len(sample.token_ids) <= 60
        text = material.tokenizer.decode(list(sample.token_ids[: sample.prompt_tokens]))
        assert text.startswith("<s><|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


# Traces.


@pytest.mark.parametrize("choice", ["auto", "always", "never"])
@pytest.mark.parametrize("template", [CHATML, None], ids=["template", "none"])
def test_whole_tasks_are_prompts(choice, template):
    tokenizer = chat_tokenizer(template)
    style, material = Traces(60, choice), material_for(tokenizer, [(Listed(*TASKS), 1.0)])
    if choice == "always" and template is None:
        with pytest.raises(UsageError, match="has no chat template"):
            style.check(material, 100)
        return
    style.check(material, 61)
    found = first(style, material, 9)
    asked = [task for task in TASKS if len(task) < 60]
    if choice == "never" or template is None:
        expected = [[0, *spell(tokenizer, task)] for task in asked]
    else:
        expected = [spell(tokenizer, user_turn(tokenizer).around(task.strip())) for task in asked]
    assert sorted(found[:3]) == sorted(expected)
    assert found[3:6] == found[:3] == found[6:]
    assert found[:3] == first(style, material, 3)
    assert any(found[:3] != first(style, replace(material, seed=seed), 3) for seed in range(1, 9))


def test_tasks_of_several_sources_take_turns():
    material = material_for(chat_tokenizer(), [(Listed("fox"), 1.0), (Listed("dog"), 3.0)])
    found = [material.tokenizer.decode(prompt) for prompt in first(Traces(), material, 40)]
    assert [sum(animal in text for text in found) for animal in ("fox", "dog")] == [10, 30]


def test_tasks_that_leave_nothing():
    material = material_for(chat_tokenizer(), [(Listed(TASKS[2], name="long"), 1.0)])
    with pytest.raises(
        CalibrationError, match="No text of the prefix source 'long' makes a prompt of at most 60 tokens"
    ):
        first(Traces(60), material, 1)
    with pytest.raises(UsageError, match="Samples of 60 tokens leave nothing to generate after prompts of up to 60"):
        Traces(60).check(material, 60)


# Through the pipeline.


def test_whole_samples_end_as_the_model_ended_them():
    """The model's end of turn is not what the tokenizer calls its end token."""
    samples = (
        Sample((0, 291, 60, 292, 70, 292), 4, "eos", -1.0),
        Sample((0, 291, 61, 292, 71, 72), 4, "length", -1.0),
    )
    generated = Generated(samples, (Verdict(True, 0.0),) * 2)
    packed = Packing(20, "whole", "sample", 0, 1).pack(generated.documents(0, [1, 292]), 2, 0, "self")
    assert sorted((s.token_ids, s.prompt_tokens, s.finish) for s in packed.samples) == sorted(
        (s.token_ids, s.prompt_tokens, s.finish) for s in samples
    )


@pytest.fixture(scope="module")
def chatty(llama, tmp_path_factory) -> Path:
    """The tiny llama with a chat template, and an end of turn among the tokens at which it ends a text."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(llama, folder)
    chat_tokenizer().save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, 292]}))
    return folder


def task_file(folder: Path) -> Path:
    lines = [json.dumps({"text": f"{text} {number}"}) for number in range(6) for text in ("the fox", "quick lazy dog")]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "tasks.jsonl"


def run(model: Path, folder: Path, style: dict[str, object]) -> tuple[list[Sample], dict[str, object]]:
    recipe = load_recipe(
        None,
        (),
        {
            "model": str(model),
            "device": "cpu",
            "calibration.packing": "whole",
            "calibration.samples": 12,
            "calibration.length": 64,
            "calibration.filters": [],
            "calibration.generation.style": style,
            "calibration.generation.prefixes": str(task_file(folder)),
            "calibration.generation.batch_size": 5,
            "calibration.generation.temperature": 1.5,
            "calibration.generation.top_k": 0,
            "calibration.generation.top_p": 1.0,
        },
    )
    plan_calibration(recipe, resolve_model(str(model))).run(folder / "set", Reporter())
    return read_samples(folder / "set" / "samples.jsonl"), json.loads((folder / "set" / "manifest.json").read_text())


def test_traces_become_whole_samples_with_their_prompts(chatty, tmp_path):
    samples, manifest = run(chatty, tmp_path, {"name": "traces", "prompt_tokens": 40})
    assert len(samples) == 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(chatty)
    turn = user_turn(tokenizer)
    tasks = {turn.around(json.loads(line)["text"]) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()}
    assert {tokenizer.decode(list(s.token_ids[: s.prompt_tokens])) for s in samples} == tasks  # each of twelve, once
    assert all(s.token_ids[:2] == (0, 291) and s.token_ids.count(292) >= 1 for s in samples)
    assert all(s.prompt_tokens < len(s.token_ids) <= 64 for s in samples)
    assert all(s.token_ids[-1] in (1, 292) for s in samples if s.finish == "eos")
    made = [Sample.from_json(s) for s in lines_of(tmp_path / "set" / "kept.jsonl")]
    assert sorted(s.token_ids for s in made) == sorted(s.token_ids for s in samples)
    assert {s.token_ids: s.prompt_tokens for s in made} == {s.token_ids: s.prompt_tokens for s in samples}
    assert manifest["account"]["distinct_prompts"] == 12


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_chats_become_whole_samples(chatty, tmp_path):
    samples, _ = run(chatty, tmp_path, {"name": "chat", "user_tokens": 8})
    tokenizer = transformers.AutoTokenizer.from_pretrained(chatty)
    assert len(samples) == 12
    for sample in samples:
        text = tokenizer.decode(list(sample.token_ids[: sample.prompt_tokens]))
        assert text.startswith("<s><|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert sample.prompt_tokens < len(sample.token_ids) <= 64
    assert len({sample.token_ids for sample in samples}) == 12


def test_another_chat_template_is_another_model(chatty, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(chatty, other)
    assert resolve_model(str(other)).digest == resolve_model(str(chatty)).digest
    path = other / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "model"))
    assert resolve_model(str(other)).digest != resolve_model(str(chatty)).digest


def test_what_cannot_be_written_is_refused_before_the_model_is_loaded(llama):
    for style, words in [
        ({"name": "chat"}, "has no chat template"),
        ({"name": "traces"}, "leave nothing to generate after prompts of up to 1024"),
        ({"name": "traces", "template": "maybe"}, "template: .* found 'maybe'"),
    ]:
        recipe = Recipe.model_validate({"calibration": {"generation": {"style": style}}})
        with pytest.raises(UsageError, match=words):
            plan_calibration(recipe, resolve_model(str(llama)))
