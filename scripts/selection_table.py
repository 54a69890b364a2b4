"""Every selection on one model: held-out perplexity after pruning beside that of random samples of the same pool.

    python scripts/selection_table.py --out docs/results/selections-reference
    python scripts/selection_table.py --out docs/results/selections-reference --seeds 5 6 7 --part 1

For each seed and source a pool of four times the samples is made once; every selection, the random one included, chooses
from it, so seeds pair. Cells that the ``cells-*.jsonl`` of the output folder have are not run again; several processes may
fill it for different ``--seeds``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from secateur import api
from secateur.calibration.sample import CalibrationSet, write_samples
from secateur.evaluation.perplexity import perplexity
from secateur.generation.engine import Engine
from secateur.journal import Journal
from secateur.models.loading import load_model, load_tokenizer, quiet_transformers
from secateur.pipeline.calibrate import load_set
from secateur.pipeline.calibration_stage import SAMPLES
from secateur.pipeline.components import ResolvedModel, make_selection, resolve_model
from secateur.pipeline.context import ModelContext
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.recipe import Recipe
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.store import DIGEST_SHOWN, build, digest_of, read_manifest

RANDOM = "random"
SELECTIONS: dict[str, dict[str, Any]] = {
    RANDOM: {"name": "random"},
    "lowest-perplexity": {"name": "lowest-perplexity"},
    "min-k, high": {"name": "min-k"},
    "min-k, low": {"name": "min-k", "side": "low"},
    "coverage": {"name": "coverage"},
    "diversity": {"name": "diversity"},
    "k-means": {"name": "k-means"},
    "influence": {"name": "influence", "targets": ["stdlib-train"]},
}
CELLS: dict[str, list[str]] = {
    f"{method}, {target}": [f"pruning.method={method}", setting]
    for method in ("wanda", "sparsegpt")
    for target, setting in (("60 %", "pruning.sparsity=0.6"), ("2:4", "pruning.pattern=2:4"))
}
POOL = 4
SETTINGS = ["calibration.length=256", "evaluation.protocol=concat-512"]


@dataclass(frozen=True)
class Bench:
    """The model, the settings of every cell, and what scores a folder."""

    model: ResolvedModel
    settings: list[str]
    samples: int
    store: Path
    score: Callable[[Path], float]

    def recipe(self, seed: int, *settings: str) -> Recipe:
        return load_recipe(None, [*self.settings, *settings], {"model": self.model.name, "seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--part", default="0", help="names this process's file of cells")
    parser.add_argument("--sources", nargs="+", default=["site-packages", "self"])
    parser.add_argument("--only", nargs="+", choices=list(SELECTIONS), default=list(SELECTIONS))
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--targets", nargs="+", help="sources for influence; not the evaluation text")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--text", help="source of the evaluation text")
    parser.add_argument("--store", type=Path, default=Path("secateur-store"))
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="further recipe settings")
    asked = parser.parse_args()
    quiet_transformers()
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, f"evaluation.limit={asked.windows}", *asked.more]
    settings += [f"evaluation.text={asked.text}"] if asked.text else []
    if asked.targets:
        SELECTIONS["influence"]["targets"] = asked.targets
    model = resolve_model(asked.model)
    evaluation = plan_evaluation(load_recipe(None, settings, {"model": asked.model}), model)
    text = evaluation.evaluation_text()  # the same for all cells: tokenised once

    def score(folder: Path) -> float:
        return perplexity(load_model(folder, dtype=torch.float32), text, evaluation.protocol).value

    bench = Bench(model, [*settings, "evaluation.enabled=false"], asked.samples, asked.store, score)
    names = [RANDOM, *(name for name in asked.only if name != RANDOM)]
    journal = Journal(asked.out / f"cells-{asked.part}.jsonl")
    for seed in asked.seeds:
        for source in asked.sources:
            run_pool(bench, journal, source, seed, names, asked.cells)
    write_table(asked.out, [f"model={asked.model}", f"calibration.samples={asked.samples}", *settings])


def run_pool(bench: Bench, journal: Journal, source: str, seed: int, names: list[str], cells: list[str]) -> None:
    """All cells of one pool that are not there yet."""
    done = {tuple(entry[key] for key in ("source", "selection", "cell", "seed")) for entry in journal.entries}
    wanted = [(name, cell) for name in names for cell in cells if (source, name, cell, seed) not in done]
    if not wanted:
        return
    samples = f"calibration.samples={POOL * bench.samples}"
    made = api.generate(bench.recipe(seed, f"calibration.source={source}", samples), store=bench.store)
    for name, folder, seconds in chosen(bench, made.folder, seed, list(dict.fromkeys(name for name, _ in wanted))):
        for cell in (cell for other, cell in wanted if other == name):
            with tempfile.TemporaryDirectory() as place:
                recipe = bench.recipe(seed, f"calibration.source={folder}", *CELLS[cell])
                result = api.prune(recipe, out=Path(place) / "pruned", store=bench.store)
                value = bench.score(result.folder)
            journal.append(
                {
                    "source": source,
                    "selection": name,
                    "settings": SELECTIONS[name],
                    "cell": cell,
                    "seed": seed,
                    "perplexity": value,
                    "seconds": seconds,
                    "sparsity": result.manifest["sparsity"],
                    "set_digest": result.manifest["calibration"]["set_digest"],
                }
            )
            print(source, name, cell, seed, round(value, 3), flush=True)


def chosen(bench: Bench, pool_folder: Path, seed: int, names: list[str]) -> Iterator[tuple[str, Path, float]]:
    """Each selection's set of the pool as a finished folder, and the seconds it took to choose, model loaded."""
    pool, tokenizer = load_set(pool_folder), load_tokenizer(bench.model.folder)
    engine: Engine | None = None
    for name in names:
        setting = f"calibration.selection={json.dumps(SELECTIONS[name])}"
        recipe = bench.recipe(seed, setting)
        spec = {"stage": "selection", "pool": pool.digest, "samples": bench.samples, "seed": seed, **SELECTIONS[name]}
        folder = bench.store / "calibration" / f"{SELECTIONS[name]['name']}-{digest_of(spec)[:DIGEST_SHOWN]}"

        def make(partial: Path, recipe: Recipe = recipe) -> dict[str, Any]:
            nonlocal engine
            context = ModelContext(recipe, bench.model.folder, tokenizer)
            engine = context.engine if engine is None else engine
            context.engine = engine  # loaded once for all; what it measures is measured anew
            started = time.perf_counter()
            choice = make_selection(recipe).choose(pool.samples, bench.samples, context)
            seconds = time.perf_counter() - started
            found = CalibrationSet(tuple(pool.samples[index] for index in choice.indices))
            write_samples(partial / SAMPLES, found.samples, context.texts(found.samples))
            facts = {key: value for key, value in (read_manifest(pool_folder) or {}).items() if key != "files"}
            facts = {key: value for key, value in facts.items() if not key.startswith("spec")}
            counts = {"set_digest": found.digest, "samples": len(found.samples), "tokens": found.tokens}
            return {**facts, **counts, "phases": {"select": {"seconds": seconds}}}

        build(folder, spec, make)
        yield name, folder, (read_manifest(folder) or {})["phases"]["select"]["seconds"]


def write_table(out: Path, settings: list[str]) -> None:
    """``table.md`` from the cells of all processes."""
    found = [entry for path in sorted(out.glob("cells-*.jsonl")) for entry in Journal(path).entries]
    values = {(entry["source"], entry["selection"], entry["cell"], entry["seed"]): entry for entry in found}
    lines = [
        f"Held-out perplexity after pruning relative to `{RANDOM}` samples of the same pool, paired by seed: mean of the log "
        "ratios and half its 95 % interval (Student t); below 0 is better than random. Of intervals about nothing, one in "
        "twenty leaves 0 out (*). `random` itself: mean perplexity. Seconds: median of the choice alone, model loaded; "
        "log-probabilities that the self-generated pool carries are not computed again.",
        "",
        f"Settings: `{' '.join(settings)}`; the pool is {POOL} times the samples.",
    ]
    for source in dict.fromkeys(entry["source"] for entry in found):
        lines += ["", f"### {source}", "", f"| selection | {' | '.join(CELLS)} | seeds | seconds |"]
        lines.append("|---|" + "---|" * (len(CELLS) + 2))
        for name in SELECTIONS:
            mine = [entry for entry in values.values() if (entry["source"], entry["selection"]) == (source, name)]
            if mine:
                shown = [cell_text(values, source, name, cell) for cell in CELLS]
                seeds = len({entry["seed"] for entry in mine})
                seconds = statistics.median(entry["seconds"] for entry in mine)
                lines.append(f"| {name} | {' | '.join(shown)} | {seeds} | {seconds:.2f} |")
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def cell_text(values: dict[tuple[str, str, str, int], dict[str, Any]], source: str, name: str, cell: str) -> str:
    """One cell: the mean of ``random``, or of the log ratios to it."""
    own = {key[3]: entry["perplexity"] for key, entry in values.items() if key[:3] == (source, name, cell)}
    base = {key[3]: entry["perplexity"] for key, entry in values.items() if key[:3] == (source, RANDOM, cell)}
    if name == RANDOM:
        return f"{statistics.mean(own.values()):.2f}" if own else ""
    logs = [math.log(own[seed] / base[seed]) for seed in sorted(own.keys() & base.keys())]
    if len(logs) < 2:
        return f"{logs[0]:+.2%}" if logs else ""
    half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
    mean = statistics.mean(logs)
    return f"{mean:+.2%} ± {half:.2%}" + ("\\*" if abs(mean) > half else "")


if __name__ == "__main__":
    main()
