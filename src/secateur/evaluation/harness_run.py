"""One run of lm-eval's evaluator: our model behind its interface, its samples as our scores."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from secateur.errors import UsageError
from secateur.evaluation.confidence import confidence_of
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.task import TaskScore, accuracy_error
from secateur.generation.engine import Sampling

AVERAGED = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1")
"""Metrics that are means over questions, so that a group's is the mean weighted by questions."""
RENAMED = {"perplexity": "ppl"}
NEW_TOKENS = 256


class HarnessModel(TemplateLM):
    """A ``Scorer`` as lm-eval asks for it. Tokens, prefixes and truncation are those of its own Hugging Face model, whose
    ``add_bos_token`` is true where the scorer's ``bos`` is ``every``, false where it is ``none``, else left open."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer, self.stderr = scorer, sys.stderr
        self.tokenizer = scorer.tokenizer  # type: ignore[assignment]

    @property
    def eot_token_id(self) -> int:
        return self.scorer.prefix

    @property
    def tokenizer_name(self) -> str:
        return str(self.scorer.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        begins = string.startswith(str(self.scorer.tokenizer.decode(self.scorer.prefix)))
        if add_special_tokens is False or begins:
            return list(self.scorer.encode(string))
        return list(self.scorer.special(string))

    @property
    def add_bos_token(self) -> bool | None:
        return {"every": True, "none": False}.get(self.scorer.bos)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        with redirect_stderr(self.stderr):
            return self.scorer.logprobs([(tuple(context), tuple(following)) for _, context, following in requests])

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        pairs, owners = [], []
        for number, request in enumerate(requests):
            ids, longest = self.tok_encode(request.args[0]), self.scorer.positions
            windows = get_rolling_token_windows(ids, self.prefix_token_id, longest or len(ids) + 1, context_len=1)
            for context, following in map(make_disjoint_window, windows):
                pairs.append((tuple(context), tuple(following)))
                owners.append(number)
        found = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self.scorer.logprobs(pairs), strict=True):
            found[owner] += value
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, up to the first of each request's ``until``. Raises ``UsageError`` where a task samples."""
        found = []
        for request in requests:
            prompt, given = request.args
            asked = dict[str, Any](normalize_gen_kwargs(given, NEW_TOKENS))
            if asked.get("do_sample") and asked.get("temperature", 1) > 0:
                raise UsageError("This task of lm-eval draws its answers at random; only greedy answers are supported.")
            tokens = int(asked["max_gen_toks"])
            ids = self.tok_encode(prompt) or [self.scorer.prefix]
            sample = self.scorer.write([ids], tokens, Sampling(greedy=True), 0)[0]
            text = str(
                self.scorer.tokenizer.decode(list(sample.token_ids[sample.prompt_tokens :]), skip_special_tokens=True)
            )
            for end in asked["until"]:
                text = text.split(end)[0] if end else text
            found.append(text)
        return found


def run_harness(tasks: Mapping[str, Any], scorer: Scorer, limit: int | None, local: bool) -> TaskScore:
    """The score of loaded ``tasks``: of one its own, of several the mean over all questions and each task's beside it.

    ``limit``: of each only the first so many questions. ``local``: their data came from files, not from the Hub.
    """
    import datasets

    datasets.disable_progress_bars()
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    chosen = {name: list(range(min(size, limit or size))) for name, size in sizes.items()}
    cut = scorer.cut
    model = HarnessModel(scorer)
    with redirect_stderr(io.StringIO()):  # lm-eval's own progress bars; ours go where they always go
        found: Any = evaluate(
            model,
            {"tasks": dict(tasks), "groups": {}, "group_map": {}},
            samples=chosen if limit else None,
            bootstrap_iters=0,  # standard errors are ours: lm-eval's bootstrap starts processes
        )
    samples = {name: found["samples"][name] for name in tasks}
    parts = {name: _metrics(found["results"][name]) for name in tasks}
    counts = {name: len({sample["doc_id"] for sample in samples[name]}) for name in tasks}
    metrics = next(iter(parts.values())) if len(parts) == 1 else _pooled(parts, counts)
    items = sum(counts.values())
    if "acc" in metrics:
        metrics["acc_stderr"] = accuracy_error(metrics["acc"], items)
    facts: dict[str, Any] = {
        "version": _same(found["versions"].values()),
        "fewshot": _same(found["n-shot"].values()),
        "limit": limit,
        "add_bos_token": model.add_bos_token,
        "batch_size": scorer.batch_size or scorer.largest_batch,
        "cut": scorer.cut - cut,
        "lm_eval": version("lm_eval"),
        "documents": _digest(samples),
        "data": "local" if local else _same(task.get_config("dataset_path") for task in tasks.values()),
    }
    if len(parts) > 1:
        facts["subtasks"] = {name: {**parts[name], "items": counts[name]} for name in sorted(parts)}
    every = [(tasks[name], sample) for name in tasks for sample in samples[name]]
    answers = [answer for task, sample in every if (answer := _answer(task, sample))]
    chance = sum(_chance(task, sample) for task, sample in every) / max(len(every), 1)
    return TaskScore(metrics, items, chance, answers, [_text(task, sample) for task, sample in every], facts)


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's ``acc,none`` as ``acc``; of a metric under several filters each as ``metric@filter``, the first also plain."""
    found: dict[str, float] = {}
    for key, value in results.items():
        name, _, way = key.partition(",")
        if not way or name.endswith("_stderr") or not isinstance(value, int | float) or math.isnan(value):
            continue
        name = RENAMED.get(name, name)
        found.setdefault(name, float(value))
        if way != "none":
            found[f"{name}@{way}"] = float(value)
    return found


def _pooled(parts: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> dict[str, float]:
    shared = set.intersection(*(set(part) for part in parts.values()))
    total = sum(counts.values())
    names = [name for name in AVERAGED if name in shared]
    return {name: sum(parts[part][name] * counts[part] for part in parts) / total for name in names}


def _choices(task: Any, sample: Mapping[str, Any]) -> list[tuple[float, bool]] | None:
    """The log-likelihood of each choice; ``None`` for what is no multiple choice."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    return sample["filtered_resps"][: len(task.doc_to_choice(sample["doc"]))]


def _answer(task: Any, sample: Mapping[str, Any]) -> tuple[float, bool] | None:
    choices = _choices(task, sample)
    if choices is None or "acc" not in sample:
        return None
    return confidence_of([float(value) for value, _ in choices]), bool(sample["acc"])


def _chance(task: Any, sample: Mapping[str, Any]) -> float:
    choices = _choices(task, sample)
    return 1 / len(choices) if choices else 0.0


def _text(task: Any, sample: Mapping[str, Any]) -> str:
    """The question with its right answer, without examples before it."""
    doc = sample["doc"]
    question, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if task.OUTPUT_TYPE != "multiple_choice":
        return f"{question}{'' if str(target).startswith(' ') else task.config.target_delimiter}{target}"
    choices = task.doc_to_choice(doc)
    if isinstance(question, int):  # the choices are beginnings, the target what follows all of them
        return f"{choices[question]}{task.config.target_delimiter}{target}"
    right = choices[target] if isinstance(target, int) else target[0] if isinstance(target, list) else target
    return f"{question}{task.config.target_delimiter if question else ''}{right}"


def _digest(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    hashes = [sample["doc_hash"] for name in sorted(samples) for sample in samples[name]]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _same(values: Any) -> Any:
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found
