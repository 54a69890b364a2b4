"""lm-eval's tasks on a model in memory: found, checked beforehand, loaded from the Hub or from local files, scored."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secateur.errors import UnknownNameError, UsageError
from secateur.evaluation.local_files import SHOWN, check_local, data_files, file_facts, local_file, read_rows
from secateur.evaluation.local_rows import COLUMNS
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.task import EvaluationTask, TaskScore
from secateur.registry import suggestion

FOLDERS = {
    "boolq": "super_glue/boolq",
    "winogrande": "winogrande",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "mmlu": "mmlu/default",
    "openbookqa": "openbookqa",
    "rte": "glue/rte",
    "lambada_openai": "lambada",
    "blimp": "blimp",
    "gsm8k": "gsm8k",
    "wikitext": "wikitext",
}
"""Where lm-eval keeps the definitions of these: reading its 10,000 others takes half a minute."""

ASKED, CHANGES = "secateur", "changes"
OF_GROUPS = ("group", "group_alias", "task", "tag", "include", "aggregate_metric_list", "metadata")
"""Keys of a group that are not for its tasks."""
FEWSHOT_SEED = 1234
"""lm-eval's own default."""


def require_lm_eval() -> str:
    """The version of lm-eval. Raises ``UsageError`` when it is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError(
            "Evaluation tasks are run by lm-eval, which is not installed; install it with pip install lm-eval, or "
            "leave evaluation.tasks empty."
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return version("lm_eval")


@dataclass(frozen=True)
class HarnessTask(EvaluationTask):
    """A task or group of lm-eval by ``name``. ``fewshot``: examples shown (``None``: as its definition says); ``limit``: of
    each task only the first so many questions, as lm-eval's own; ``folder``: local files in place of the Hub."""

    name: str
    fewshot: int | None = None
    limit: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        if (self.fewshot is not None and self.fewshot < 0) or (self.limit is not None and self.limit < 1):
            raise UsageError(
                f"The task {self.name!r} needs fewshot from 0 and limit from 1; found {self.fewshot} and {self.limit}."
            )

    @property
    def local(self) -> bool:
        """Whether it is lm-eval's own definition on a local file."""
        return self.folder is not None and self.name not in own_definitions(self.folder)

    def spec(self) -> dict[str, Any]:
        """With the digests of local files; what the Hub serves is not known beforehand."""
        leaves = self.leaves()
        if self.local:
            read = check_local(Path(self.folder or ""), self.name, self.shown)
        else:
            read = [path for config in leaves.values() for path in data_files(config)]
            read += sorted(Path(self.folder).rglob("*.py")) if self.folder is not None else []
        files = [file_facts(path) for path in dict.fromkeys(read)]
        definitions = {name: _plain(config) for name, config in leaves.items()}
        asked = {"name": self.name, "fewshot": self.fewshot, "limit": self.limit, "lm_eval": require_lm_eval()}
        return asked | {"files": files, "definitions": digest(definitions)}

    @property
    def shown(self) -> int:
        return self.fewshot if self.fewshot is not None else 0

    def check(self) -> None:
        """Raise ``UsageError`` when the task is unknown, or its data is neither here nor on the Hub within reach."""
        require_lm_eval()
        leaves = self.leaves()
        for name, config in leaves.items():
            if config.get("unsafe_code"):
                raise UsageError(
                    f"The task {name!r} runs code that the model writes, which Secateur does not do; leave it out."
                )
        if self.local:
            check_local(Path(self.folder or ""), self.name, self.shown)
            return
        for name, config in leaves.items():
            for path in data_files(config):
                if not path.exists():
                    raise UsageError(
                        f"The task {name!r} is defined to read {path}, which is not there; put it there, or correct "
                        "dataset_kwargs.data_files in its definition."
                    )
        sets: dict[str, str | None] = {}
        for config in leaves.values():
            if config.get("dataset_path") and config["dataset_path"] not in ("json", "csv", "parquet", "text"):
                sets.setdefault(config["dataset_path"], config.get("dataset_name"))
        for path, subset in sets.items():
            _reach(self.name, path, subset)

    def leaves(self) -> dict[str, Mapping[str, Any]]:
        """The definitions of the tasks that the name stands for, by their own names."""
        return self._found()[1]

    def _found(self) -> tuple[Any, dict[str, Mapping[str, Any]]]:
        """The smallest of lm-eval's indices that has all of the task, and the task's definitions."""
        for known in (FOLDERS.get(self.name, ""), None):
            manager = _index(known, self.folder)
            if self.name in manager.task_index:
                leaves = _expanded(self.name, manager.task_index)
                if leaves is not None:
                    return manager, leaves
        names = _index(None, self.folder).task_index
        if self.name in names:
            raise UsageError(
                f"The group {self.name!r} of lm-eval defines tasks inside itself, which is not supported; name the tasks singly."
            )
        raise UnknownNameError(
            f"lm-eval {require_lm_eval()} has no task or group named {self.name!r}{_near(self.name, [*FOLDERS, *names])} "
            "Besides, there are Secateur's own: alpaca, next-line, paper, parses, wikitext2."
        )

    def load(self) -> dict[str, Any]:
        """lm-eval's task objects by name, with their data. Raises ``UsageError`` when that cannot be had."""
        manager, leaves = self._found()
        rows = self._local_rows() if self.local else {}
        asked = [
            {"task": name, **config.get(CHANGES, {}), **self._overrides(config, rows)}
            for name, config in leaves.items()
        ]
        try:
            found = manager.load([{"group": ASKED, "task": asked}])["tasks"]
        except UsageError:
            raise
        except Exception as error:  # whatever datasets, the Hub or a definition's own code may raise
            raise UsageError(
                f"lm-eval cannot load the task {self.name!r}: {type(error).__name__}: {_short(error)}. {_instead(self.name)}"
            ) from error
        for task in found.values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return found

    def _overrides(self, config: Mapping[str, Any], rows: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.fewshot is not None and config.get("num_fewshot") != 0:
            found["num_fewshot"] = self.fewshot
        if not self.local:
            return found
        scored = config.get("test_split") or config.get("validation_split") or "test"
        shown = config.get("fewshot_split") or config.get("training_split") or "train"
        group = config.get("dataset_name") if COLUMNS[self.name].split_by else None
        data = {scored: _of(rows["scored"], self.name, group)[: self.limit]}
        if "shown" in rows:
            data[shown] = _of(rows["shown"], self.name, group)
        splits = ("training_split", "validation_split", "test_split", "fewshot_split")
        found |= {split: config[split] if config.get(split) in data else None for split in splits}
        return found | {"custom_dataset": LocalDataset(data, f"{self.name}/{group or ''}")}

    def _local_rows(self) -> dict[str, list[dict[str, Any]]]:
        folder, columns = Path(self.folder or ""), COLUMNS[self.name]
        scored, *_ = check_local(folder, self.name, self.shown)
        shown = local_file(folder, self.name, SHOWN)
        found = {"scored": read_rows(scored, columns)}
        return found | ({"shown": read_rows(shown, columns)} if shown and self.shown else {})

    def score(self, scorer: Scorer) -> TaskScore:
        from secateur.evaluation.harness_run import run_harness

        return run_harness(scorer.keep(self, self.load), scorer, self.limit, self.local)


class LocalDataset:
    """What lm-eval calls for a task's data: rows in memory, by split."""

    def __init__(self, data: Mapping[str, Sequence[dict[str, Any]]], where: str) -> None:
        self.data, self.where = data, where

    def __call__(self, **_: Any) -> Any:
        import datasets

        empty = [split for split, rows in self.data.items() if not rows]
        if empty:
            raise UsageError(
                f"The local file of the task {self.where.rstrip('/')!r} has no rows for {', '.join(empty)}."
            )
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(list(rows)) for split, rows in self.data.items()}
        )


def own_definitions(folder: str) -> set[str]:
    """The names of the tasks that the folder defines itself, in lm-eval's YAML."""
    return (
        set(_index("", folder).task_index) if Path(folder).is_dir() and any(Path(folder).glob("**/*.yaml")) else set()
    )


@cache
def _index(known: str | None, folder: str | None) -> Any:
    """lm-eval's index of task definitions: of one of its folders (``""``: none; ``None``: all, slow) and of ``folder``."""
    require_lm_eval()
    import lm_eval.tasks

    places: list[str | Path] = [Path(str(lm_eval.tasks.__file__)).parent / known] if known else []
    places += [Path(folder)] if folder else []
    return lm_eval.tasks.TaskManager(include_path=places or None, include_defaults=known is None)


def _expanded(name: str, index: Mapping[str, Any]) -> dict[str, Mapping[str, Any]] | None:
    """The tasks that ``name`` stands for in ``index``, with what its groups change in them; ``None`` where one is not there."""
    entry = index[name]
    config = dict(entry.cfg or {})
    if entry.kind.name in ("TASK", "PY_TASK"):
        return {name: config}
    members = sorted(entry.tags) if entry.kind.name == "TAG" else config.get("task", [])
    everywhere = {key: value for key, value in config.items() if key not in OF_GROUPS}
    found: dict[str, Mapping[str, Any]] = {}
    for member in members if isinstance(members, list) else [members]:
        asked: dict[str, Any] = {"task": member} if isinstance(member, str) else dict(member)
        own = asked.pop("task", None) or asked.pop("group", None)
        inner = _expanded(own, index) if isinstance(own, str) and own in index else None
        if inner is None:
            return None
        for leaf, plain in inner.items():
            changes = {**everywhere, **asked, **plain.get(CHANGES, {})}
            found[leaf] = {**plain, **changes, CHANGES: changes}
    return found


def _of(rows: Sequence[dict[str, Any]], task: str, group: str | None) -> list[dict[str, Any]]:
    by = COLUMNS[task].split_by
    return [row for row in rows if by is None or row[by] == group]


def _reach(task: str, path: str, subset: str | None) -> None:
    """Raise ``UsageError`` when the Hub's data set cannot be had (from its cache, or by the network)."""
    import datasets

    datasets.disable_progress_bars()
    try:
        datasets.load_dataset_builder(path, subset)
    except Exception as error:  # network errors have many types
        raise UsageError(
            f"The task {task!r} reads the data set {path}{f' ({subset})' if subset else ''} from the Hub, which cannot be had "
            f"here: {_short(error)}. {_instead(task)}"
        ) from error


def _instead(task: str) -> str:
    if task in COLUMNS:
        return (
            f"Put its file into a folder as {task}/test.jsonl or {task}/validation.jsonl and name the folder with "
            "evaluation.tasks_from, or leave the task out."
        )
    return "Name a folder that defines it in lm-eval's YAML with evaluation.tasks_from, or leave the task out."


def _near(name: str, known: Sequence[str]) -> str:
    near = suggestion(name, known)
    return near.split("? Known: ")[0] + "?" if "? Known: " in near else "."


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _plain(value: Any) -> Any:
    """A definition as JSON: what its code is called stands for it, without where it lies."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def digest(definitions: Mapping[str, Any]) -> str:
    """SHA-256 of task definitions."""
    return hashlib.sha256(json.dumps(definitions, sort_keys=True, default=str).encode()).hexdigest()
