"""lm-eval's tasks on a model in memory: the numbers of its own Hugging Face model, its prompts from local files, messages."""

from __future__ import annotations

import gzip
import json
import math
from types import SimpleNamespace

import pytest
import torch
import transformers

from conftest import prune_folder, save_model, tiny_tokenizer

pytest.importorskip("lm_eval")

from secateur.cli.main import main
from secateur.errors import UnknownNameError, UsageError
from secateur.evaluation import harness
from secateur.evaluation.harness import HarnessTask
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.protocol import EvaluationText, parse_protocol
from secateur.evaluation.scorer import Scorer
from secateur.models.loading import load_model, load_tokenizer
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.evaluator import Evaluator
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.reporter import Reporter
from secateur.studies.plan import plan_study
from secateur.studies.run import run_study
from secateur.studies.study_file import load_study

QUESTIONS = [
    ("Where does the fox sleep?", ["in the den", "over the dog"], 0),
    ("What is lazy?", ["the fox", "the dog"], 1),
    ("Who jumps?", ["the quick fox", "nobody"], 0),
    ("How many dogs are there?", ["one", "none at all"], 0),
]
TEXTS = ["the quick brown fox " * 4, "lazy dog", "jumps over the lazy dog"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    """Local files in the form that copies often have."""
    plain = [{"query": query, "choices": choices, "gold": gold} for query, choices, gold in QUESTIONS]
    write(tmp_path / "tasks" / "piqa" / "validation.jsonl.gz", plain)
    question = "Passage: A fox. \nQuestion: odd?\nQuestion: is a fox quick?"
    write(tmp_path / "tasks" / "boolq" / "data.jsonl.gz", [{"query": question, "choices": ["no", "yes"], "gold": 1}])
    begin = ["The dog saw the fox so the dog", "The dog saw the fox so the fox"]
    write(tmp_path / "tasks" / "winogrande.jsonl.gz", [{"context_options": begin, "continuation": "ran.", "gold": 1}])
    return str(tmp_path / "tasks")


@pytest.fixture
def scorer(llama):
    return Scorer(load_model(llama), load_tokenizer(llama), 64)


def requests(*pairs):
    return [SimpleNamespace(args=pair) for pair in pairs]


def test_our_numbers_are_those_of_lm_eval_s_own_model(llama, scorer):
    from lm_eval.models.huggingface import HFLM

    from secateur.evaluation.harness_run import HarnessModel

    ours = HarnessModel(scorer)
    theirs = HFLM(pretrained=scorer.model, tokenizer=load_tokenizer(llama), batch_size=2, max_length=64, device="cpu")
    pairs = [
        ("the quick", " brown fox"),
        ("the quick ", "dog"),
        ("", "lazy dog"),
        ("<s>the", " lazy"),
        ("the " * 70, "fox"),
    ]
    found, expected = ours.loglikelihood(requests(*pairs)), theirs.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [(text,) for text in (*TEXTS, " ".join(map(str, range(90))))]
    rolled = theirs.loglikelihood_rolling(requests(*texts), disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests(*texts)) == pytest.approx(rolled, rel=1e-4)
    until = {"until": ["o"], "max_gen_toks": 6, "do_sample": False}
    written = theirs.generate_until(requests(("the quick", until)), disable_tqdm=True)
    assert ours.generate_until(requests(("the quick", until))) == written


def test_answers_are_as_long_as_asked_under_any_name_and_never_drawn(llama, scorer):
    from lm_eval.models.huggingface import HFLM

    from secateur.evaluation.harness_run import HarnessModel

    ours = HarnessModel(scorer)
    theirs = HFLM(pretrained=scorer.model, tokenizer=load_tokenizer(llama), batch_size=1, max_length=64, device="cpu")
    for given in (
        {"max_new_tokens": 5},
        {"max_tokens": 4, "until": "o"},
        {"max_completion_tokens": 3, "do_sample": False},
    ):
        asked = requests(("the quick", {"until": []} | given))
        assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)
    for given in ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}):
        with pytest.raises(UsageError, match="draws its answers at random"):
            ours.generate_until(requests(("the quick", {"until": []} | given)))


def test_a_question_that_fills_the_positions_fits(tmp_path):
    """GPT-2 has a table of positions: one more than it has is an error, not a slow answer."""
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    )
    scorer = Scorer(load_model(save_model(config, tmp_path / "gpt2")), tiny_tokenizer(), 16)
    for context in (14, 15, 40):
        ids = [2 + place % 60 for place in range(context + 2)]
        ((value, _),) = scorer.logprobs([(tuple(ids[:context]), tuple(ids[context:]))])
        with torch.inference_mode():
            logits = scorer.model(torch.tensor([ids[:-1][-16:]])).logits[0].log_softmax(dim=-1)
        assert value == pytest.approx(float(logits[-2, ids[-2]] + logits[-1, ids[-1]]), rel=1e-5)
    assert scorer.cut == 1
    assert scorer.largest_batch == 16


def test_a_definition_s_own_data_is_looked_for_beforehand_and_belongs_to_the_digest(tmp_path):
    data, tasks = tmp_path / "own" / "data.jsonl", tmp_path / "tasks"
    tasks.mkdir()
    body = f"dataset_path: json\noutput_type: loglikelihood_rolling\ntest_split: test\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\n"
    (tasks / "own.yaml").write_text(f"task: own_data\n{body}doc_to_text: ''\ndoc_to_target: '{{{{page}}}}'\n")
    (tasks / "code.yaml").write_text(f"task: own_code\nunsafe_code: true\n{body}doc_to_text: ''\ndoc_to_target: x\n")
    task = HarnessTask("own_data", folder=str(tasks))
    with pytest.raises(UsageError, match=r"'own_data' is defined to read .*data\.jsonl, which is not there"):
        task.check()
    data.parent.mkdir()
    specs = []
    for rows in (1, 3):
        data.write_text('{"page": "the fox"}\n' * rows)
        task.check()
        specs.append(task.spec())
    assert specs[0] != specs[1]
    (tasks / "helper.py").write_text("def f(doc): return doc\n")
    assert task.spec() != specs[1]
    with pytest.raises(UsageError, match="'own_code' runs code that the model writes"):
        HarnessTask("own_code", folder=str(tasks)).check()


def test_our_perplexity_is_lm_eval_s_on_the_same_text(llama, tmp_path, scorer):
    """Documents within the model's positions, each after one begin token: lm-eval's word perplexity with ours counted by
    words in place of tokens. (It puts a begin token of its own before whatever the tokenizer adds: here nothing.)"""
    plain = tiny_tokenizer()
    plain.backend_tokenizer.post_processor = None
    text = tmp_path / "tasks" / "text.jsonl"
    text.parent.mkdir()
    text.write_text("\n".join(json.dumps({"page": page}) for page in TEXTS) + "\n")
    (tmp_path / "tasks" / "own.yaml").write_text(
        "task: own_text\ndataset_path: json\noutput_type: loglikelihood_rolling\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: '{text}'}}}}\n"
        "doc_to_text: ''\ndoc_to_target: '{{page}}'\nmetric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]\n"
        "metadata: {version: 7}\n"
    )
    task = HarnessTask("own_text", folder=str(tmp_path / "tasks"))
    task.check()
    found = task.score(Scorer(scorer.model, plain, 64))
    rows = tuple((0, *plain(page)["input_ids"]) for page in TEXTS)
    one = [perplexity(scorer.model, EvaluationText((row,)), parse_protocol("document")).value for row in rows]
    nats = sum(math.log(value) * (len(row) - 1) for value, row in zip(one, rows, strict=True))
    words, size = (
        sum(map(count, TEXTS)) for count in (lambda text: len(text.split(" ")), lambda text: len(text.encode()))
    )
    assert found.metrics["byte_perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-4)
    assert math.log(found.metrics["word_perplexity"]) * words == pytest.approx(
        nats, rel=0.1
    )  # words by lm-eval's count
    assert (found.facts["version"], found.items, found.answers) == (7, 3, [])


HUB = {
    "piqa": [{"goal": query, "sol1": one, "sol2": two, "label": gold} for query, (one, two), gold in QUESTIONS],
    "boolq": [{"passage": "A fox. \nQuestion: odd?", "question": "is a fox quick", "label": 1}],
    "winogrande": [
        {"sentence": "The dog saw the fox so the _ ran.", "option1": "dog", "option2": "fox", "answer": "2"}
    ],
}


@pytest.mark.parametrize("name", sorted(HUB))
def test_prompts_from_local_files_are_those_of_lm_eval_s_columns(name, folder, tmp_path, scorer):
    write(tmp_path / "hub" / name / "test.jsonl.gz", HUB[name])
    asked = []
    for place in (folder, str(tmp_path / "hub")):
        (task,) = HarnessTask(name, folder=place).load().values()
        task.build_all_requests(limit=None, rank=0, world_size=1)
        asked.append([(entry.args, entry.idx) for entry in task.instances])
    assert asked[0] == asked[1]
    assert len(asked[0]) == 2 * len(HUB[name])


def test_a_task_is_scored_with_its_version_its_limit_and_its_confidence(folder, scorer):
    found = HarnessTask("piqa", limit=3, folder=folder).score(scorer)
    assert (found.items, found.chance, len(found.answers)) == (3, 0.5, 3)
    assert found.facts["version"] == 1.0
    assert found.facts["lm_eval"]
    assert [found.facts[name] for name in ("fewshot", "limit", "data", "cut")] == [0, 3, "local", 0]
    assert found.texts[1] == "Question: What is lazy?\nAnswer: the dog"
    assert found.metrics["acc"] == sum(right for _, right in found.answers) / 3
    scores = found.scores(5)
    assert len(scores["reliability"]["bins"]) == 5
    assert scores["ece"] >= 0
    json.dumps(scores)
    wino = HarnessTask("winogrande", folder=folder).score(scorer)
    assert wino.texts == ["The dog saw the fox so the fox ran."]


def test_examples_are_shown_from_a_file_of_their_own(folder, tmp_path, scorer):
    with pytest.raises(
        UsageError, match=r"with 2 examples shown, but .* has none of piqa/dev\.jsonl, piqa/train\.jsonl"
    ):
        HarnessTask("piqa", 2, folder=folder).check()
    write(tmp_path / "tasks" / "piqa" / "train.jsonl.gz", HUB["piqa"])
    task = HarnessTask("piqa", 2, folder=folder)
    (loaded,) = task.load().values()
    loaded.build_all_requests(limit=None, rank=0, world_size=1)
    assert loaded.instances[0].args[0].count("Question:") == 3
    assert task.spec() != HarnessTask("piqa", folder=folder).spec()


def test_what_is_not_there_is_said_beforehand(folder, tmp_path, monkeypatch):
    cases = {
        HarnessTask("hellaswag", folder=folder): "none of hellaswag/test.jsonl, hellaswag/validation.jsonl",
        HarnessTask("piqa", folder=str(tmp_path / "no")): "There is no folder",
        HarnessTask("gsm8k", folder=folder): "without a definition of its own there, that is known for arc_challenge",
        HarnessTask("boolq"): "reads the data set aps/super_glue .boolq. from the Hub, which cannot be had here",
    }
    for task, sentence in cases.items():
        with pytest.raises(UsageError, match=sentence):
            task.check()
    write(tmp_path / "tasks" / "piqa" / "validation.jsonl.gz", [{"text": "a"}])
    with pytest.raises(UsageError, match="has the keys text, where the task needs goal, sol1"):
        HarnessTask("piqa", folder=folder).load()
    few = harness._index("piqa", None)
    monkeypatch.setattr(harness, "_index", lambda known, folder: few)  # all of lm-eval's takes half a minute to read
    with pytest.raises(UnknownNameError, match=r"no task or group named 'piqaa'; did you mean 'piqa'.*next-line"):
        HarnessTask("piqaa").check()
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install lm-eval, or leave"):
        HarnessTask("piqa", folder=folder).check()


@pytest.fixture
def asked(llama, text_file, folder):
    evaluation = {
        "text": str(text_file),
        "protocol": "concat-32",
        "tasks": ["piqa", {"name": "next-line", "items": 4, "text": folder.replace("tasks", "lines")}],
        "tasks_from": folder,
        "generations": {"count": 3, "prompt_tokens": 4, "tokens": 6},
    }
    from pathlib import Path

    lines = Path(folder.replace("tasks", "lines"))
    lines.mkdir()
    (lines / "a.txt").write_text("\n".join(f"line {number} is {number * 7} long" for number in range(30)))
    return Recipe.model_validate({"model": str(llama), "evaluation": evaluation})


def test_evaluations_of_one_dense_model_share_it_and_score_the_same(llama, asked, tmp_path):
    pruned = [tmp_path / "half", tmp_path / "more"]
    for place, share in zip(pruned, (0.5, 0.7), strict=True):
        prune_folder(llama, place, "magnitude", "unstructured", share)
    dense = resolve_model(str(llama))
    stages = [plan_evaluation(asked, resolve_model(str(place)), dense) for place in pruned]
    alone = [stage.run(stage.folder(tmp_path / "a"), Reporter()) for stage in stages]
    for memory in (2**30, 0):
        shared = Evaluator(memory)
        place = tmp_path / f"b{memory}"
        together = [stage.run(stage.folder(place), Reporter(), shared) for stage in stages]
        assert together == alone
        kept = [entry for key, entry in shared._kept.items() if key[0] == "logits"]
        assert len(kept) == 3  # the text, and that of two tasks
        assert all(entry.keeps == bool(memory) for entry in kept)
        shared.close()
    one = alone[0]
    assert one["fidelity"] != alone[1]["fidelity"]
    assert set(one["retention"]["tasks"]) == {"piqa", "next-line"}
    assert one["tasks"]["piqa"]["fidelity"]["js"] > 0
    assert one["task_fidelity"]["tokens"] == sum(task["fidelity"]["tokens"] for task in one["tasks"].values())
    assert one["generation"]["dense"]["tokens"] > 0
    dense_scores = stages[0].reference.run(stages[0].reference.folder(tmp_path / "a"), Reporter())
    assert one["retention"]["tasks"]["piqa"]["dense"] == dense_scores["tasks"]["piqa"]["acc_norm"]
    assert "retention" not in dense_scores


def test_the_command_shows_tasks_before_and_after(llama, text_file, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECATEUR_STORE", str(tmp_path / "store"))
    prune_folder(llama, tmp_path / "half", "magnitude", "unstructured", 0.5)
    words = [
        "evaluate",
        str(tmp_path / "half"),
        "--text",
        str(text_file),
        "--protocol",
        "concat-32",
        "--against",
        str(llama),
    ]
    assert main([*words, "--task", "piqa", "--task", "boolq", "--tasks-from", folder]) == 0
    printed = capsys.readouterr().out
    for sentence in (
        "piqa           dense ",
        "chance 50.0%",
        "calibration error dense",
        "commonsense",
        "on task text   KL",
    ):
        assert sentence in printed
    assert main([*words, "--task", "hellaswag", "--tasks-from", folder]) == 2
    assert "The task 'hellaswag' is not in" in capsys.readouterr().err


STUDY = """
question: Which tasks suffer?
recipe:
  model: {model}
  device: cpu
  calibration: {{source: {text}, samples: 4, length: 24}}
  pruning: {{propagation: dense, sparsity: 0.6}}
  evaluation: {{text: {text}, protocol: concat-32, limit: 2, tasks: [{tasks}], tasks_from: {folder}}}
axes:
  method: {{path: pruning.method, values: [wanda, sparsegpt]}}
repeats: 2
metric: piqa/acc
metrics: [mean-accuracy, retention, tasks/kl]
comparisons:
  - {{kind: difference, axis: method, baseline: wanda, claim: better}}
"""


def test_a_study_measures_by_lm_eval_s_tasks(llama, text_file, folder, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(model=llama, text=text_file, folder=folder, tasks="piqa, boolq"))
    found = run_study(plan_study(load_study(str(path))), None, tmp_path / "store", Reporter(), 0)
    assert not found.failed
    assert [answer["metric"] for answer in found.answers] == ["piqa/acc", "mean-accuracy", "retention", "tasks/kl"]
    assert all(answer["estimate"] is not None for answer in found.answers)
    assert "piqa/acc against 'wanda': 'sparsegpt'" in found.answers[0]["sentence"]
    path.write_text(STUDY.format(model=llama, text=text_file, folder=folder, tasks="piqa, hellaswag"))
    with pytest.raises(UsageError, match="The task 'hellaswag' is not in"):
        plan_study(load_study(str(path)))
