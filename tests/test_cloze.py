"""Tasks made of plain text, and what a model writes: next line, parsing functions, length and repetition."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import CalibrationError, ModelError, RecipeError, UsageError
from secateur.evaluation.cloze import NextLine, next_lines
from secateur.evaluation.completion import Parses, body_of, functions_of, parses
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.writing import writing
from secateur.models.loading import load_model, load_tokenizer
from secateur.pipeline.evaluation_tasks import plan_tasks
from secateur.pipeline.recipe import EvaluationSpec

CODE = '''"""A module."""

import math


@cached
def area(radius: float,
         scale: float = 1.0) -> float:
    """The area."""
    value = math.pi * radius**2
    return value * scale


class Shape:
    def name(self): return "shape"

    def corners(self, count):  # many
        total = [
            count,
        ]
        return total
'''


@pytest.fixture
def scorer(llama):
    return Scorer(load_model(llama), load_tokenizer(llama), 64)


@pytest.fixture
def code(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(CODE.replace("area", f"area_{number}"))
    return str(tmp_path)


def test_log_likelihoods_are_those_of_one_plain_forward(scorer):
    pairs = [
        ((0, 5, 6), (7, 8)),
        ((0, 5, 6), (9,)),
        ((0, 5, 6), (10,)),
        ((0,), (5, 6, 7, 8, 9, 10)),
        (tuple(range(3, 90)), (7,)),
    ]
    expected = []
    for context, following in pairs:
        whole = (context + following)[-65:]
        with torch.inference_mode():
            logits = scorer.model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)[-len(following) :]
        greedy = logits.argmax(-1).tolist() == list(following)
        expected.append((sum(row[token].item() for row, token in zip(logits, following, strict=True)), greedy))
    for size in (None, 1, 2):
        scorer.batch_size = size
        found = scorer.logprobs(pairs)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert scorer.cut == 3  # one input a run
    best = int(scorer.model(torch.tensor([[0, 5]])).logits[0, -1].argmax())
    assert scorer.logprobs([((0, 5), (best,))])[0][1]


def test_next_lines_are_true_lines_among_others_of_the_same_text():
    task = NextLine(items=9, per_text=3, choices=3, context_lines=4)
    texts = [(str(number), CODE.replace("area", f"area_{number}")) for number in range(4)]
    items = next_lines(texts, task)
    assert len(items) == 9
    for item in items:
        assert len(set(item.choices)) == 3
        assert any(item.context + item.choices[item.gold] in text for _, text in texts)
        assert len({len(choice) - len(choice.lstrip()) for choice in item.choices}) == 1
        assert item.context.count("\n") <= 4
    assert items == next_lines(texts, task)
    assert items != next_lines(texts, NextLine(items=9, per_text=3, choices=3, context_lines=4, seed=1))
    assert len({item.gold for item in items}) > 1


def test_the_task_scores_what_the_model_finds_likelier(scorer, code):
    found = NextLine(items=6, choices=2, context_lines=2, text=code).score(scorer)
    assert (found.items, found.chance, len(found.answers), len(found.texts)) == (6, 0.5, 6, 6)
    assert found.metrics["acc"] == sum(right for _, right in found.answers) / 6
    assert all(0.5 <= sure <= 1 for sure, _ in found.answers)


def test_lines_are_python_s_own():
    text = "x = 1\n\f\nclass A:\r\n    def f(self, a):\n        return '\u2028'\n"
    (found,) = functions_of([("a", text)], Parses(items=1, per_text=5))
    assert found.header == "    def f(self, a):\n"
    assert found.body == "        return '\u2028'\n"


def test_functions_are_cut_after_their_header():
    found = functions_of([("a", CODE), ("b", "not python (")], Parses(per_text=5, context_lines=2))
    by_name = {function.header.strip().splitlines()[0]: function for function in found}
    assert set(by_name) == {"def area(radius: float,", "def corners(self, count):  # many"}  # the one-line one is none
    area = by_name["def area(radius: float,"]
    assert area.header.endswith("-> float:\n")
    assert area.context.endswith("@cached\n")
    assert area.body.endswith("return value * scale\n")
    assert not parses(area.header)
    assert all(parses(function.header + function.body) for function in found)


@pytest.mark.parametrize(
    ("written", "body", "whole"),
    [
        ("\n        return 1\n\n    def other(self):\n        pass\n", "\n        return 1\n\n", True),
        ("\n        return 1\n        retu", "\n        return 1\n", False),
        ("\n        return [\n    ]\n        x\n", "\n        return [\n    ]\n        x\n", False),
        ("\n        return 1", "\n", False),
        (" return 1\n", " return 1\n", False),
    ],
)
def test_a_body_ends_with_its_indentation_or_its_last_whole_line(written, body, whole):
    assert body_of("    def f(self):\n", written, ended=False) == (body, whole)
    assert body_of("    def f(self):\n", "\n        return 1", ended=True) == ("\n        return 1", True)


def test_parsing_is_python_s():
    assert parses("    def f(self):\n        return 1\n")
    assert not parses("    def f(self):\n")
    assert not parses("    def f(self):\n        return (\n")
    assert not parses("def f():\n    '\0'\n")


def test_completions_are_scored_and_the_same_each_time(scorer, code):
    task = Parses(items=4, tokens=8, context_lines=0, per_text=1, text=code)
    one, two = task.score(scorer), task.score(scorer)
    assert one == two
    assert 0 <= one.metrics["acc"] <= 1
    assert one.items == 4


def test_a_model_that_writes_a_body_passes(scorer, code, monkeypatch):
    from secateur.calibration.sample import Sample

    body = scorer.encode("\n        return 1\n\nx = 1\n")
    write = lambda self, prompts, *rest: [Sample((*prompt, *body), len(prompt)) for prompt in prompts]  # noqa: E731
    monkeypatch.setattr(Scorer, "write", write)
    found = Parses(items=4, context_lines=0, text=code).score(scorer)
    assert found.metrics["acc"] == found.metrics["finished"] == 1


def test_writing_counts_length_and_repetition(scorer, monkeypatch):
    sequences = [[0, *range(5, 25)]] * 5 + [[0, 1]]
    own = scorer.model.generation_config
    found = writing(scorer, sequences, 3, 4, 12, 1.0)
    assert (found.texts, found.compression > 0) == (3, True)
    assert 1 <= found.tokens <= 12
    assert found == writing(scorer, sequences, 3, 4, 12, 1.0)
    assert scorer.model.generation_config is own  # a second task sees the model's own end tokens
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.zero_()
    loop = writing(scorer, sequences, 2, 4, 12, 0)
    assert loop.tokens == 12
    assert loop.repetition == pytest.approx(8 / 9)  # nine 4-grams of one token, one of them new
    with pytest.raises(CalibrationError, match="prompt_tokens lower"):
        writing(scorer, [[0, 1]], 3, 4, 12, 1.0)
    with pytest.raises(ModelError, match="no room"):
        writing(scorer, sequences, 2, 4, 64, 0)


def test_settings_and_texts_that_make_no_sense(code, tmp_path):
    with pytest.raises(UsageError, match="2 choices"):
        NextLine(choices=1)
    with pytest.raises(UsageError, match="items, tokens"):
        Parses(items=0)
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text("x\ny\n")
    with pytest.raises(CalibrationError, match="no place for the task 'next-line'"):
        next_lines([("a", "x\ny\n")], NextLine())
    with pytest.raises(CalibrationError, match="no Python function"):
        functions_of([("a", "x = 1\n")], Parses())
    with pytest.raises(RecipeError, match="did you mean 'items'"):
        plan_tasks(EvaluationSpec.model_validate({"tasks": [{"name": "next-line", "item": 3}]}))
    with pytest.raises(RecipeError, match="'parses' twice"):
        plan_tasks(EvaluationSpec.model_validate({"tasks": ["parses", {"name": "parses", "items": 3}]}))
