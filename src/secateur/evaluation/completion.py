"""Does a completed function parse? A generation task made of Python source."""

from __future__ import annotations

import ast
import io
import random
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.scorer import Scorer
from secateur.evaluation.task import TaskScore, accuracy_error
from secateur.evaluation.text_task import TextTask
from secateur.generation.engine import Sampling


@dataclass(frozen=True)
class Function:
    """``context``: the lines before; ``header``: the function's lines up to its colon; ``body``: the true one's."""

    context: str
    header: str
    body: str


@dataclass(frozen=True)
class Parses(TextTask):
    """Functions of Python files are cut after their header; the model writes on, greedily, at most ``tokens`` tokens.
    ``acc``: the share of completed functions that ``ast.parse`` takes, up to where the indentation ends, or to the last
    whole line where it does not end in time. A header alone does not parse, so something must be written.

    ``items`` functions are drawn by ``seed``, at most ``per_text`` of one text; the model sees ``context_lines`` lines before
    them. ``text``: a source of Python text. ``finished``: the share of completions whose function ended in time.
    """

    items: int = 64
    tokens: int = 96
    context_lines: int = 20
    per_text: int = 2
    seed: int = 0

    name = "parses"

    def __post_init__(self) -> None:
        if min(self.items, self.tokens, self.per_text) < 1 or self.context_lines < 0:
            raise UsageError(
                "The task 'parses' needs at least 1 of items, tokens and per_text, and context_lines from 0; found "
                f"{self.items}, {self.tokens}, {self.per_text} and {self.context_lines}."
            )

    def score(self, scorer: Scorer) -> TaskScore:
        functions = scorer.keep(self, lambda: functions_of(self.source().texts(), self))
        # Without the last line break: tokenizers have one token for it and the indentation that follows.
        prompts = [scorer.begun((function.context + function.header).rstrip("\n")) for function in functions]
        written = scorer.write(prompts, self.tokens, Sampling(greedy=True), self.seed)
        right, finished = [], []
        for function, sample in zip(functions, written, strict=True):
            ids = list(sample.token_ids[sample.prompt_tokens :])
            text = str(scorer.tokenizer.decode(ids, skip_special_tokens=True))
            body, whole = body_of(function.header, text, ended=sample.finish == "eos")
            right.append(parses(function.header.rstrip("\n") + body))
            finished.append(whole)
        items = len(functions)
        acc = sum(right) / items
        metrics = {"acc": acc, "acc_stderr": accuracy_error(acc, items), "finished": sum(finished) / items}
        texts = [function.context + function.header + function.body for function in functions]
        return TaskScore(metrics, items, 0.0, (), texts, {"text": self.text, "seed": self.seed, "asked": self.items})


def functions_of(texts: Iterable[tuple[str, str]], task: Parses) -> list[Function]:
    """The functions that ``task`` draws from ``(origin, text)`` pairs of Python source; texts that do not parse are passed
    over. Raises ``CalibrationError`` when there is none."""
    draw = random.Random(task.seed)
    documents = [text for _, text in texts]
    draw.shuffle(documents)
    found: list[Function] = []
    for text in documents:
        nodes = _functions(text)
        lines = _lines(text)
        for start, body, end in draw.sample(nodes, min(task.per_text, len(nodes))):
            context = "".join(lines[max(0, start - task.context_lines) : start])
            found.append(Function(context, "".join(lines[start:body]), "".join(lines[body:end])))
        if len(found) >= task.items:
            return found[: task.items]
    if not found:
        raise CalibrationError(
            f"The text {task.text!r} has no Python function for the task 'parses'; name a source of Python files with its "
            "setting text."
        )
    return found


def _functions(text: str) -> list[tuple[int, int, int]]:
    """Of each function whose body begins on a line of its own: first line, first of the body, and the end, from 0."""
    tree, lines = _parsed(text), _lines(text)
    found = []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = min(
                node.body[0].lineno, *(entry.lineno for entry in getattr(node.body[0], "decorator_list", [])), 10**9
            )
            header = lines[node.lineno - 1 : body - 1]
            if header and header[-1].split("#")[0].rstrip().endswith(":"):
                found.append((node.lineno - 1, body - 1, node.end_lineno or body))
    return sorted(found)


def body_of(header: str, written: str, ended: bool) -> tuple[str, bool]:
    """The part of ``written``, which goes on from the end of the last line of ``header``, that belongs to the function, in
    whole lines; and whether the function ended: by a line that is indented no further, or because the text ``ended``."""
    indent = _indent(header)
    lines = _lines(written)
    for number, line in enumerate(lines):
        complete = number < len(lines) - 1 or line.endswith("\n")
        # ")" and the like may close, on their own line, what the body opened.
        if number and line.strip() and complete and _indent(line) <= indent and line.strip()[0] not in ")]}":
            return "".join(lines[:number]), True
    if not ended and lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
    return "".join(lines), ended


def parses(code: str) -> bool:
    """Whether ``code``, moved to the left margin, is Python."""
    return _parsed(textwrap.dedent(code)) is not None


def _lines(text: str) -> list[str]:
    """The lines that Python counts: ``str.splitlines`` ends one at form feeds and other separators too."""
    return io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")).readlines()


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _indent(line: str) -> int:
    line = line.expandtabs()
    return len(line) - len(line.lstrip())
