"""secateur demo"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Common

if TYPE_CHECKING:
    from secateur.pipeline.components import ResolvedModel
    from secateur.pipeline.known import Known
    from secateur.pipeline.recipe import Recipe

REFERENCE = "reference"
PATTERN = "2:4"
MOST = 512
"""Tokens of a window at most, of models other than the bundled one."""
CONTINUATION_TOKENS = 48
SILENCE = "(nothing: it ends at once)"


@dataclass(frozen=True)
class Show:
    """What is shown of a kind of model. ``sources``: of calibration data, in words; ``texts``: what is measured on, by the
    heading of its column (``None``: what the recipe measures on by itself); ``settings``: of every recipe."""

    sources: dict[str, str]
    texts: dict[str, str | None]
    settings: dict[str, Any]


BUNDLED = Show(
    {
        "random-tokens": "random tokens",
        "prose": "English prose about Python",
        "site-packages": "other people's Python",
        "stdlib-train": "its own training files",
        "self": "text it wrote itself",
    },
    {"perplexity": None},
    {"evaluation.limit": 64, "calibration.samples": 64, "calibration.generation.batch_size": 80},
)
ANY = Show(
    {
        "random-tokens": "random tokens",
        "prose-train": "English prose about Python",
        "site-packages": "other people's Python",
        "self": "text it wrote itself",
    },
    {"English": "prose-heldout", "Python": "stdlib-heldout"},
    {
        "evaluation.limit": 16,
        "evaluation.dtype": "auto",
        "calibration.samples": 32,
        "calibration.generation.batch_size": 40,
        "calibration.generation.prefixes": "prose-train",
    },
)


@dataclass(frozen=True)
class Prompt:
    """What models go on with. ``text``: as the model reads it; ``words``: before the name of a model, ``does``: after it;
    ``shown``: whether the continuation is shown after the prompt."""

    text: str
    words: str
    does: str
    shown: bool = True


CODE = Prompt("    def close(self):\n        if self._file is not None:", "The prompt (two lines) as", "continues it")
QUESTION = "Why is the sky blue? Answer in two sentences."
BEGINNING = "The sky is blue because"


@dataclass(frozen=True)
class Run:
    """One row of a table to come. ``words``: what it is called; ``recipes``: what is run, by the column's heading."""

    source: str
    words: str
    recipes: dict[str, Recipe]


@dataclass
class Table:
    """What was measured of one pattern. ``dense``: scores by heading; ``folder``: the last model made."""

    pattern: str
    dense: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    folder: Path = Path()

    @property
    def amount(self) -> str:
        """What the models were pruned to, in words."""
        return self.pattern if self.pattern != "unstructured" else f"{self.rows[-1]['sparsity']:.0%}"


def demo(
    *,
    model: Annotated[str, Parameter(help="A Hub id, a local folder, or 'reference' (the bundled model).")] = REFERENCE,
    method: Annotated[str, Parameter(help="The method that is calibrated.")] = "sparsegpt",
    pattern: Annotated[
        list[str] | None,
        Parameter(help="The sparsity pattern, 2:4 if left out; given again, another table.", negative=()),
    ] = None,
    sparsity: Annotated[float | None, Parameter(help="Share of weights to set to zero.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """The main job on the bundled model or on MODEL, offline, as one table.

    Prunes the model without data (magnitude), then with calibration data of several kinds, the last of which it writes
    itself, and measures each on held-out texts.
    """
    from secateur import api
    from secateur.cli.console import print_json, print_line
    from secateur.pipeline.known import Known

    plans = {one: _runs(model, method, one, sparsity, common) for one in dict.fromkeys(pattern or [PATTERN])}
    known = Known()
    recipes = [recipe for runs in plans.values() for run in runs for recipe in run.recipes.values()]
    for recipe in recipes:
        api.plan_run(recipe, None, known)
    resolved = known.model(recipes[0])
    if common.dry_run:
        for one, runs in plans.items():
            for run in runs:
                method_used, what = run.words.split(", ", 1)
                print_line(f"{method_used} {one}, calibrated on {what}: would be run and measured")
        return 0
    tables, made = [Table(one) for one in plans], dict[str, float]()
    for table in tables:
        with common.reporter() as reporter:
            for run in plans[table.pattern]:
                reporter.note(run.words if len(tables) == 1 else f"{table.pattern}: {run.words}")
                _measure(run, table, made, known, common.store, reporter)
        if not common.json:
            _print(table, "the bundled model" if resolved.is_reference else resolved.slug)
    prompt = _prompt(resolved)
    pruned = {one.amount if tables[1:] else "pruned": one.folder for one in tables}
    continuations = {name: _go_on(prompt, place) for name, place in {"dense": resolved.folder, **pruned}.items()}
    if common.json:
        print_json(_facts(tables) | {"continuations": continuations})
    else:
        _print_continuations(prompt, continuations)
    return 0


def _runs(model: str, method: str, pattern: str, sparsity: float | None, common: Common) -> list[Run]:
    """The rows of a pattern's table. Raises ``SecateurError`` for what is no model, or cannot be asked for."""
    from secateur.models.configuration import max_positions
    from secateur.models.locate import locate_model

    show = BUNDLED if model == REFERENCE else ANY
    settings = show.settings | {
        "pruning.pattern": pattern,
        "pruning.sparsity": sparsity,
        "evaluation.enabled": True,
        "evaluation.fidelity": False,
    }
    if show is ANY:
        length = min(max_positions(locate_model(model)) or MOST, MOST)
        settings |= {"calibration.length": length, "evaluation.protocol": f"concat-{length}"}
    asked = common.load(model, settings).evaluation.text
    texts = show.texts if asked is None else {"perplexity": asked}
    rows = [("magnitude", "magnitude", "no data", {})]
    rows += [(source, method, words, {"calibration.source": source}) for source, words in show.sources.items()]
    return [
        Run(
            source,
            f"{used}, {words}",
            {
                heading: common.load(model, settings | own | {"pruning.method": used, "evaluation.text": text})
                for heading, text in texts.items()
            },
        )
        for source, used, words, own in rows
    ]


def _measure(run: Run, table: Table, made: dict[str, float], known: Known, store: Path, reporter: Any) -> None:
    """Prune and measure for one row. ``made``: seconds that each calibration set took to make."""
    from secateur import api

    started = time.monotonic()
    first = next(iter(run.recipes.values()))
    if run.source not in made and api.plan_run(first, None, known).calibration is not None:
        api.generate(first, None, store, reporter)
        made[run.source], started = time.monotonic() - started, time.monotonic()
    row: dict[str, Any] = {"source": run.source, "what": run.words, "perplexity": {}, "ratio": {}}
    for heading, recipe in run.recipes.items():
        result = api.prune(recipe, None, store, reporter)
        table.dense[heading] = result.dense_scores["perplexity"]
        row["perplexity"][heading] = result.scores["perplexity"]["value"]
        row["ratio"][heading] = row["perplexity"][heading] / table.dense[heading]["value"]
        row["sparsity"], table.folder = result.manifest["sparsity"], result.folder
    table.rows.append(row | {"seconds": made.get(run.source, 0.0) + time.monotonic() - started})


def _facts(tables: list[Table]) -> dict[str, Any]:
    """The tables as JSON; where one text is measured on, its numbers stand without its heading."""

    def plain(value: Any) -> Any:
        return value["perplexity"] if isinstance(value, dict) and list(value) == ["perplexity"] else value

    rows = [
        {"pattern": table.pattern} | {name: plain(value) for name, value in row.items()}
        for table in tables
        for row in table.rows
    ]
    return {"dense": plain(tables[0].dense), "rows": rows, "folder": str(tables[0].folder)}


def _print(table: Table, name: str) -> None:
    from secateur.cli.console import print_line, print_table
    from secateur.evaluation.protocol import said

    protocol = said(next(iter(table.dense.values())))
    tokens = ", ".join(
        f"{dense['tokens']:,} tokens" + (f" of {heading}" if table.dense.keys() != {"perplexity"} else "")
        for heading, dense in table.dense.items()
    )
    print_line(f"Held-out perplexity of {name} ({protocol}, {tokens}), pruned to {table.amount}:")
    print_line()
    headings = ["pruned by, calibrated on"]
    lines = [["dense"], *([row["what"]] for row in table.rows)]
    for heading, dense in table.dense.items():
        headings += [heading, "to dense"]
        values = [(dense["value"], 1.0)]
        values += [(row["perplexity"][heading], row["ratio"][heading]) for row in table.rows]
        for line, (value, ratio) in zip(lines, values, strict=True):
            line += [f"{value:.2f}", f"{ratio:.2f} x"]
    lines[0] += ["0.0%", ""]
    for line, row in zip(lines[1:], table.rows, strict=True):
        line += [f"{row['sparsity']:.1%}", f"{row['seconds']:.0f}"]
    print_table([*headings, "sparsity", "seconds"], lines)
    print_line()
    print_line(
        "One seed each: differences of a percent or two are noise. Seconds include making the data and measuring."
    )
    print_line(f"The model that pruned itself: {table.folder}")
    print_line()


def _prompt(model: ResolvedModel) -> Prompt:
    """Code for the bundled model, a question for a model that has a chat template, the beginning of a sentence for others."""
    from secateur.errors import UsageError
    from secateur.generation.styles.template import user_turn
    from secateur.models.loading import load_tokenizer

    if model.is_reference:
        return CODE
    try:
        turn = user_turn(load_tokenizer(model.folder))
    except UsageError:  # no template, or none that can be used
        return Prompt(BEGINNING, "The beginning of a sentence as", "continues it")
    return Prompt(turn.around(QUESTION), f'Asked "{QUESTION}"', "answers", shown=False)


def _go_on(prompt: Prompt, folder: Path) -> str:
    """The likeliest continuation of the prompt by a model."""
    import torch

    from secateur.models.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(folder)
    inputs = tokenizer(prompt.text, return_tensors="pt", add_special_tokens=prompt.shown)
    with torch.inference_mode():
        generate: Any = load_model(folder).generate
        ids = generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=CONTINUATION_TOKENS,
            do_sample=False,
            repetition_penalty=1.1,
        )
    return str(
        tokenizer.decode(ids[0, 0 if prompt.shown else inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    )


def _print_continuations(prompt: Prompt, continuations: dict[str, str]) -> None:
    from secateur.cli.console import print_line

    for number, (name, text) in enumerate(continuations.items()):
        if number:
            print_line()
        which = f"{name} model" if name in ("dense", "pruned") else f"model pruned to {name}"
        print_line(f"{prompt.words} the {which} {prompt.does}:")
        print_line("    " + (text.strip("\n").replace("\n", "\n    ") or SILENCE))
