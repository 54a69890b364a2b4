"""Which of lm-eval's tasks a name stands for, local rows in its columns, and what evaluations have in common."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("lm_eval")

from secateur.errors import RecipeError
from secateur.evaluation.harness import HarnessTask
from secateur.evaluation.local_rows import COLUMNS
from secateur.evaluation.scorer import Scorer
from secateur.models.loading import load_model, load_tokenizer
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.evaluation_tasks import plan_tasks
from secateur.pipeline.recipe import EvaluationSpec, Recipe
from secateur.pipeline.reporter import Reporter


@pytest.fixture
def scorer(llama):
    return Scorer(load_model(llama), load_tokenizer(llama), 64)


def test_other_forms_become_the_hub_s_columns():
    arc = COLUMNS["arc_easy"].rows([{"query": "Question: Why?", "choices": ["a", "b", "c"], "gold": 2}])
    assert arc == [
        {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}
    ]
    book = COLUMNS["openbookqa"].rows([{"query": "Rain is", "choices": ["wet", "dry"], "gold": 0}])
    assert (book[0]["question_stem"], book[0]["answerKey"]) == ("Rain is", "A")
    rows = [
        {"query": f"Act: {text}", "choices": ["x"], "gold": 0} for text in ("A man sits. he", "Sit down. Stand up.")
    ]
    hella = COLUMNS["hellaswag"].rows(rows)
    assert [(row["activity_label"], row["ctx_a"], row["ctx_b"]) for row in hella] == [
        ("Act", "A man sits.", "he"),
        ("Act", "Sit down. Stand up.", ""),
    ]
    assert COLUMNS["lambada_openai"].rows([{"context": "a b", "continuation": "c"}]) == [{"text": "a b c"}]
    assert COLUMNS["rte"].rows([{"sentence1": "a", "sentence2": "b", "label": "not_entailment"}])[0]["label"] == 1
    assert "has the keys text, where the task needs" in COLUMNS["piqa"].rows([{"text": "a"}])


def test_the_paper_s_tasks_are_one_name(tmp_path, monkeypatch):
    monkeypatch.setattr(HarnessTask, "check", lambda self: None)
    spec = EvaluationSpec.model_validate({"tasks": [{"name": "paper", "limit": 9}, "next-line"], "tasks_from": "x"})
    found = plan_tasks(spec)
    assert [task.name for task in found[:2]] == ["boolq", "winogrande"]
    assert [(task.fewshot, task.limit) for task in found[5:7]] == [(0, 9), (5, 9)]
    assert len(found) == 8
    for settings, sentence in ({"fewshot": 1}, "have no setting 'fewshot'"), ({"folder": "x"}, "evaluation.tasks_from"):
        name = "paper" if "fewshot" in settings else "boolq"
        with pytest.raises(RecipeError, match=sentence):
            plan_tasks(EvaluationSpec.model_validate({"tasks": [{"name": name, **settings}]}))


def test_groups_are_told_apart_and_pooled(monkeypatch):
    leaves = HarnessTask("mmlu").leaves()
    assert len(leaves) == 57
    assert leaves["mmlu_anatomy"]["dataset_name"] == "anatomy"
    rows = [
        {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0, "subject": name} for name in ("anatomy", "law")
    ]
    task = HarnessTask("mmlu", 1, folder="x")
    found = task._overrides(leaves["mmlu_anatomy"], {"scored": rows, "shown": rows})
    assert found["custom_dataset"].data == {"test": rows[:1], "dev": rows[:1]}
    assert (found["num_fewshot"], found["test_split"], found["fewshot_split"]) == (1, "test", "dev")
    assert len(HarnessTask("blimp").leaves()) == 67
    from secateur.evaluation.harness_run import _pooled

    parts = {"a": {"acc": 1.0, "ppl": 3.0}, "b": {"acc": 0.0, "ppl": 9.0}}
    assert _pooled(parts, {"a": 3, "b": 1}) == {"acc": 0.75}


OFFLINE = [
    "arc_challenge",
    "arc_easy",
    "boolq",
    "hellaswag",
    "lambada_openai",
    "openbookqa",
    "piqa",
    "rte",
    "winogrande",
]


def test_the_real_questions_are_read_from_local_files(shared, llama, scorer):
    folder = str(shared / "data" / "eval")
    for name in [*OFFLINE, "blimp"]:
        HarnessTask(name, folder=folder).check()
    HarnessTask("mmlu", 5, folder=folder).check()
    for name in OFFLINE:
        found = HarnessTask(name, limit=2, folder=folder).score(scorer)
        assert found.items == len(found.texts) == 2
        assert found.chance == {"winogrande": 0.5, "boolq": 0.5, "piqa": 0.5, "rte": 0.5, "lambada_openai": 0}.get(
            name, 0.25
        )
    assert found.texts[0] == "Sarah was a much better surgeon than Maria so Maria always got the easier cases."


def test_two_that_want_the_same_evaluation_take_turns(llama, text_file, tmp_path):
    recipe = Recipe.model_validate(
        {"model": str(llama), "evaluation": {"text": str(text_file), "protocol": "concat-16"}}
    )
    stage = plan_evaluation(recipe, resolve_model(str(llama)))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: stage.run(stage.folder(tmp_path), Reporter()), range(3)))
    assert found[0] == found[1] == found[2]
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == [stage.folder(tmp_path).name]


def test_plain_evaluations_keep_their_digests(llama, text_file):
    asked = {"text": str(text_file), "protocol": "concat-32", "bos": "first"}  # as it was before it could be asked for
    recipe = Recipe.model_validate({"model": str(llama), "evaluation": asked})
    stage = plan_evaluation(recipe, resolve_model(str(llama)))
    known = {"stage", "format", "model", "dense", "text", "text_fingerprint", "protocol", "limit", "dtype"}
    assert stage.spec.keys() == known
    assert stage.spec["format"] == 1
