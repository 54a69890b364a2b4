"""What a model writes as its own calibration text, style by style: cost, lengths, what filters say, perplexity, texts to read.

    python scripts/real_writing.py FOLDER --data DATA --out docs/results/NAME/writing

The paper's recipe (``recipes/paper.yaml``), ``self-calibration`` and ``chat`` with their defaults, each as a calibration set
of whole texts, made by ``secateur.generate`` with one seed. ``DATA`` is a folder with ``wikipedia_en/train.jsonl.gz`` (the paper's
prefixes; else the bundled prose), and with ``wikitext2/test_raw.jsonl.gz`` and ``c4/heldout.jsonl.gz`` (real text to compare the
perplexity with; what is not there is left out, and said so). Sets are kept in ``--work``: a style that is there is not written
again. ``--only`` makes some of them and no tables, so that several processes may share the work.

Writes ``summary.json``, ``table.md``, ``perplexity.csv``, ``perplexity.svg`` and ``texts-STYLE.md`` into ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import platform
import random
import statistics
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from secateur import api
from secateur.calibration.filters import FILTERS
from secateur.calibration.sample import Sample, read_samples
from secateur.diagnosis.languages import language_counts
from secateur.models.loading import load_tokenizer, quiet_transformers
from secateur.pipeline.context import ModelContext
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter
from secateur.reports.drawing import look, new_figure, standalone, style, svg_of

SHOWN = 20
"""Texts of each style to read."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ASKED_OF = ("repetition", "duplicates", "language")
"""Filters that no style has by default: what each would drop by its defaults, if it came first."""
PROSE = "prose"
GIVEN = "\N{BROKEN BAR}"
"""Stands in a shown text where what the model was given ends."""


@dataclass(frozen=True)
class Way:
    """A way of writing: the recipe's name (``None``: the defaults), what is set in it, and how many times the common length a
    text may have; there are so many times fewer texts."""

    recipe: str | None
    settings: tuple[str, ...] = ()
    lengths: int = 1


WAYS = {
    "paper": Way("paper", ("calibration.generation.generations=null",)),
    "self-calibration": Way(None, ("calibration.generation.style=self-calibration",)),
    "chat": Way(None, ("calibration.generation.style=chat",), lengths=2),
}
REAL = {"WikiText-2": "wikitext2/test_raw.jsonl.gz", "C4": "c4/heldout.jsonl.gz"}
PREFIXES = "wikipedia_en/train.jsonl.gz"


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    model: str
    data: Path | None
    work: Path
    out: Path
    samples: int
    length: int
    seed: int

    def file(self, name: str) -> Path | None:
        path = self.data / name if self.data else None
        return path if path and path.exists() else None


class Clock(Reporter):
    """CPU and wall seconds between the first and the last word of generations: nothing of the loading."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "generations":
            self.marks.append((time.process_time(), time.perf_counter()))
            print(f"{done} of {total} generations, {self.cpu_seconds:.0f} CPU seconds", flush=True)

    @property
    def cpu_seconds(self) -> float:
        return self.marks[-1][0] - self.marks[0][0]

    @property
    def wall_seconds(self) -> float:
        return self.marks[-1][1] - self.marks[0][1]


@dataclass(frozen=True)
class Text:
    """One generation, or one window of real text, as its set's files have it."""

    sample: Sample
    text: str
    perplexity: float
    reason: str

    @property
    def kept(self) -> bool:
        return not self.reason


def recipe_of(name: str, asked: Asked) -> Recipe:
    way = WAYS[name]
    settings = list(way.settings)
    if way.recipe == "paper":
        settings.append(f"calibration.generation.prefixes={json.dumps(prefix_source(asked))}")
        if prefix_source(asked) == PROSE:  # a few long documents
            settings.append("calibration.generation.prefix_unit=paragraph")
    return load_recipe(way.recipe, settings, common(asked, way.lengths) | {"calibration.packing": "whole"})


def prefix_source(asked: Asked) -> str:
    return str(asked.file(PREFIXES) or PROSE)


def common(asked: Asked, lengths: int = 1) -> dict[str, Any]:
    return {
        "model": asked.model,
        "device": "cpu",
        "seed": asked.seed,
        "calibration.samples": asked.samples // lengths,
        "calibration.length": asked.length * lengths,
    }


def write_set(name: str, asked: Asked) -> None:
    """Let the model write, and note beside the set what that cost."""
    folder, cost = asked.work / name, asked.work / f"{name}.json"
    if cost.exists():
        return
    clock, load = Clock(), os.getloadavg()[0]
    api.generate(recipe_of(name, asked), folder, asked.work, clock)
    found = {"cpu_seconds": clock.cpu_seconds, "wall_seconds": clock.wall_seconds, "load_average_before": load}
    cost.write_text(json.dumps(found) + "\n", encoding="utf-8")


def read_real(name: str, path: Path, asked: Asked) -> list[Text]:
    """Windows of real text, one of a document, with their perplexity."""
    folder = asked.work / name
    settings = [
        f"calibration.source={json.dumps(str(path))}",
        'calibration.filters=[{"name": "perplexity", "drop": 0.0}]',
    ]
    overrides = common(asked) | {"calibration.packing": "document"}
    api.generate(load_recipe(None, settings, overrides), folder, asked.work)
    return read_texts(folder)


def read_texts(folder: Path) -> list[Text]:
    """All that was judged, dropped or not."""
    found = []
    for file in ("kept.jsonl", "dropped.jsonl"):
        entries = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
        for sample, entry in zip(read_samples(folder / file), entries, strict=True):
            reason = f"{entry['filter']}: {entry['reason']}" if entry["reason"] else ""
            if sample.perplexity is None:
                raise SystemExit(f"{folder / file} has a sample without a score; write the set again.")
            found.append(Text(sample, entry["text"], sample.perplexity, reason))
    return found


def given_by_template(name: str, text: Text, tokenizer: Any) -> int:
    """Tokens of a text that the model did not write."""
    if name != "chat":
        return text.sample.prompt_tokens
    empty = [{"role": "user", "content": ""}]
    return len(tokenizer.apply_chat_template(empty, add_generation_prompt=True, return_dict=False))


def distinct_grams(texts: Sequence[Text], n: int = 4) -> tuple[float, float]:
    """The share of n-grams of tokens that are distinct: within a text (the mean over texts), and over all texts."""
    columns = zip(*(text.sample.token_ids for text in texts), strict=False)
    same = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))  # template, begin token
    each = []
    for text in texts:
        ids = text.sample.token_ids[same:]
        each.append(list(zip(*(ids[start:] for start in range(n)), strict=False)))
    each = [grams for grams in each if grams]
    everything = [gram for grams in each for gram in grams]
    return statistics.fmean(len(set(grams)) / len(grams) for grams in each), len(set(everything)) / len(everything)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"{share:g}": float(value) for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def asked_filters(texts: Sequence[Text], context: ModelContext) -> dict[str, Any]:
    """What each of the other filters would drop of all generations."""
    found = {}
    for name in ASKED_OF:
        verdicts = FILTERS.load(name)().judge([text.sample for text in texts], context)
        reasons = Counter(verdict.reason for verdict in verdicts if not verdict.keep)
        found[name] = {"share": sum(reasons.values()) / len(texts), "reasons": dict(reasons.most_common())}
    return found


def measured(name: str, asked: Asked, recipe: Recipe, texts: Sequence[Text]) -> dict[str, Any]:
    """Everything about one style."""
    tokenizer = load_tokenizer(Path(asked.model))
    context = ModelContext(recipe, Path(asked.model), tokenizer)
    cost = json.loads((asked.work / f"{name}.json").read_text(encoding="utf-8"))
    written = sum(len(text.sample.token_ids) - given_by_template(name, text, tokenizer) for text in texts)
    within, over_all = distinct_grams(texts)
    lengths = [len(text.sample.token_ids) for text in texts]
    dropped = Counter(text.reason for text in texts if text.reason)
    return {
        "settings": settings_of(recipe),
        "generations": len(texts),
        "tokens_written": written,
        **cost,
        "tokens_per_cpu_second": written / cost["cpu_seconds"],
        "dropped": {reason: count / len(texts) for reason, count in dropped.items()},
        "would_drop": asked_filters(texts, context),
        "finish": dict(Counter(text.sample.finish for text in texts)),
        "length": {"mean": statistics.fmean(lengths), **quantiles(lengths)},
        "written_before_the_answer": None if name != "chat" else question_lengths(texts, tokenizer),
        "distinct_4_grams": {"within_a_text": within, "over_all": over_all},
        "distinct_texts": len({text.sample.token_ids for text in texts}),
        "languages": language_counts(context.texts([text.sample for text in texts])),
        "perplexity": quantiles([text.perplexity for text in texts]),
        "perplexity_kept": quantiles([text.perplexity for text in texts if text.kept]),
    }


def question_lengths(texts: Sequence[Text], tokenizer: Any) -> dict[str, float]:
    empty = given_by_template("chat", texts[0], tokenizer)
    return quantiles([text.sample.prompt_tokens - empty for text in texts])


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What decides the texts, without the places of files."""
    spec = recipe.calibration
    found = spec.generation.model_dump() | {"samples": spec.samples, "length": spec.length, "seed": recipe.seed}
    if isinstance(found["prefixes"], str):
        found["prefixes"] = "/".join(Path(found["prefixes"]).parts[-2:])
    return found


def table(summary: dict[str, Any]) -> str:
    """The styles as columns, for a README."""
    styles, real = summary["styles"], summary["real_text"]
    empty = [""] * len(real)

    def row(label: str, values: Sequence[str], others: Sequence[str] = empty) -> str:
        return f"| {' | '.join([label, *values, *others])} |"

    def each(shown: Any) -> list[str]:
        return [shown(one) for one in styles.values()]

    def spread(values: dict[str, float], digits: int) -> str:
        low, middle, high = (f"{values[f'{share:g}']:.{digits}f}" for share in (0.05, 0.5, 0.95))
        return f"{middle} ({low}-{high})"

    lines = [row("", list(styles), list(real)), row("---", ["---"] * len(styles), ["---"] * len(real))]
    lines += [
        row("texts written", each(lambda one: f"{one['generations']}"), [f"{one['windows']}" for one in real.values()]),
        row("tokens written", each(lambda one: f"{one['tokens_written']:,}")),
        row("tokens per CPU second", each(lambda one: f"{one['tokens_per_cpu_second']:.0f}")),
        row("ended by the model", each(lambda one: f"{one['finish'].get('eos', 0) / one['generations']:.0%}")),
        row("tokens a text: median (5-95 %)", each(lambda one: spread(one["length"], 0))),
        row("dropped by its filter", each(lambda one: dropped_in_words(one["dropped"]))),
    ]
    for name in ASKED_OF:
        lines.append(row(f"`{name}` would drop", each(lambda one, name=name: would_drop(one["would_drop"][name]))))
    grams = "distinct 4-grams {}"
    lines += [
        row(grams.format("in a text"), each(lambda one: f"{one['distinct_4_grams']['within_a_text']:.1%}"),
            [f"{one['distinct_4_grams']['within_a_text']:.1%}" for one in real.values()]),
        row(grams.format("over all"), each(lambda one: f"{one['distinct_4_grams']['over_all']:.1%}"),
            [f"{one['distinct_4_grams']['over_all']:.1%}" for one in real.values()]),
        row("languages (py3langid)", each(lambda one: in_words(one["languages"])),
            [in_words(one["languages"]) for one in real.values()]),
        row("perplexity, all: median (5-95 %)", each(lambda one: spread(one["perplexity"], 1)),
            [spread(one["perplexity"], 1) for one in real.values()]),
        row("perplexity, kept: median (5-95 %)", each(lambda one: spread(one["perplexity_kept"], 1))),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def dropped_in_words(dropped: dict[str, float]) -> str:
    return "; ".join(f"{share:.0%} {reason}" for reason, share in dropped.items()) or "none"


def would_drop(found: dict[str, Any]) -> str:
    reasons = "; ".join(f"{count} {reason}" for reason, count in list(found["reasons"].items())[:3])
    return f"{found['share']:.0%}" + (f" ({reasons})" if reasons else "")


def in_words(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:3])
    others = sum(list(counts.values())[3:])
    return f"{shown}, others {others}" if others else shown


def shown_texts(name: str, texts: Sequence[Text], seed: int) -> str:
    """Texts to read: drawn by the seed from all that were written, dropped ones too, the likeliest first."""
    chosen = random.Random(seed).sample(list(texts), min(SHOWN, len(texts)))
    lines = [
        f"# {name}: {len(chosen)} of {len(texts)} texts",
        "",
        f"Drawn by the seed from all that were written, dropped ones too, in order of perplexity. `{GIVEN}` stands where what was "
        "given to the model ends (in `chat`: where the answer begins; the question is the model's own too). Control characters are "
        "shown as their codes, line breaks as they are.",
    ]
    for number, text in enumerate(sorted(chosen, key=lambda one: one.perplexity), 1):
        sample = text.sample
        end = "ended by the model" if sample.finish == "eos" else "cut at its length"
        lines += [
            "",
            f"## {number}. {'kept' if text.kept else 'dropped'}, perplexity {text.perplexity:.1f}, "
            f"{len(sample.token_ids)} tokens, {end}",
            "",
            "~~~~text",
            visible(text.text),
            "~~~~",
        ]
    return "\n".join(lines) + "\n"


def visible(text: str) -> str:
    """Control and other invisible characters as codes, all but line breaks and blanks; a mark at the end of a line of blanks."""
    shown = "".join(
        c if c == "\n" or unicodedata.category(c)[0] not in "CZ" or c == " " else f"\\u{ord(c):04x}" for c in text
    )
    return "\n".join(
        line[: len(line.rstrip())] + "\N{MIDDLE DOT}" * (len(line) - len(line.rstrip())) for line in shown.split("\n")
    )


def marked(texts: Sequence[Text], tokenizer: Any) -> list[Text]:
    """The texts with a mark where what was given ends."""
    found = []
    for text in texts:
        ids, given = list(text.sample.token_ids), text.sample.prompt_tokens
        whole = tokenizer.decode(ids[:given]) + GIVEN + tokenizer.decode(ids[given:])
        found.append(Text(text.sample, whole, text.perplexity, text.reason))
    return found


def figure(series: Mapping[str, Sequence[Text]]) -> str:
    """One histogram below the other, on one logarithmic axis; what the filter dropped is lighter."""
    values = [text.perplexity for texts in series.values() for text in texts]
    bins = np.geomspace(min(values) * 0.99, max(values) * 1.01, 31)
    with style():
        drawn, axes = new_figure(1.15 * len(series) + 0.6, len(series), sharex=True)
        for number, (axis, (name, texts)) in enumerate(zip(axes, series.items(), strict=True)):
            colour = look(number)["color"]
            kept, dropped = ([text.perplexity for text in texts if text.kept is keep] for keep in (True, False))
            axis.hist([kept, dropped], bins=list(bins), stacked=True, color=[colour, colour], label=["kept", "dropped"])
            for patch in axis.containers[1].patches:
                patch.set_alpha(0.35)
            axis.axvline(statistics.median(kept + dropped), color="#888888", linestyle="--", linewidth=1)
            axis.set_title(f"{name}: median {statistics.median(kept + dropped):.1f}", fontsize=9, loc="left")
            axis.set_xscale("log")
            axis.set_ylabel("texts")
            axis.yaxis.get_major_locator().set_params(integer=True)
        axes[-1].set_xlabel("perplexity under the model (logarithmic)")
        ticks = [
            tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 3000) if bins[0] <= tick <= bins[-1]
        ]
        axes[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes[-1].minorticks_off()
        return standalone(svg_of(drawn))


def report(asked: Asked) -> None:
    texts = {name: read_texts(asked.work / name) for name in WAYS}
    files = {name: asked.file(path) for name, path in REAL.items()}
    real = {name: read_real(name, path, asked) for name, path in files.items() if path}
    missing = [name for name, path in files.items() if path is None]
    for name in missing:
        print(f"{name} is not in the data folder, so its perplexity is left out.")
    tokenizer = load_tokenizer(Path(asked.model))
    asked.out.mkdir(parents=True, exist_ok=True)
    summary = {
        "model": Path(asked.model).name,
        "environment": {
            "processor": platform.machine(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            **{name: version(name) for name in ("torch", "transformers", "secateur")},
        },
        "styles": {name: measured(name, asked, recipe_of(name, asked), found) for name, found in texts.items()},
        "real_text": {name: of_real(found) for name, found in real.items()},
        "left_out": missing,
    }
    (asked.out / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (asked.out / "table.md").write_text(table(summary), encoding="utf-8")
    for name, found in texts.items():
        page = shown_texts(name, marked(found, tokenizer), asked.seed)
        (asked.out / f"texts-{name}.md").write_text(page, encoding="utf-8")
    series = texts | real
    (asked.out / "perplexity.svg").write_text(figure(series), encoding="utf-8")
    with (asked.out / "perplexity.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["text", "perplexity", "tokens", "prompt_tokens", "finish", "dropped"])
        for name, found in series.items():
            for text in found:
                one = text.sample
                rows.writerow(
                    [name, f"{text.perplexity:.4f}", len(one.token_ids), one.prompt_tokens, one.finish, text.reason]
                )
    print(table(summary))


def of_real(texts: Sequence[Text]) -> dict[str, Any]:
    within, over_all = distinct_grams(texts)
    return {
        "windows": len(texts),
        "length": len(texts[0].sample.token_ids),
        "distinct_4_grams": {"within_a_text": within, "over_all": over_all},
        "languages": language_counts([text.text for text in texts]),
        "perplexity": quantiles([text.perplexity for text in texts]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of a model with a chat template")
    parser.add_argument("--data", type=Path, help="a folder with real text, one folder a corpus")
    parser.add_argument("--work", type=Path, default=Path("build/writing"), help="where the sets are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=48, help="texts a set")
    parser.add_argument(
        "--length", type=int, default=256, help="tokens a text at most; in a chat twice as many, of half as many texts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[*WAYS, "real"], help="make these sets alone, and no tables")
    given = parser.parse_args()
    quiet_transformers()
    asked = Asked(given.model, given.data, given.work, given.out, given.samples, given.length, given.seed)
    if not (Path(asked.model) / "config.json").is_file():
        raise SystemExit(f"{asked.model} is no folder of a model: it has no config.json.")
    if asked.data and not asked.data.is_dir():
        raise SystemExit(f"There is no folder {asked.data}, which was named as the one with real text.")
    for name in WAYS if given.only is None else [name for name in given.only if name in WAYS]:
        print(name, flush=True)
        write_set(name, asked)
    if given.only is None:
        report(asked)
    elif "real" in given.only:
        for name, path in REAL.items():
            if file := asked.file(path):
                read_real(name, file, asked)


if __name__ == "__main__":
    main()
