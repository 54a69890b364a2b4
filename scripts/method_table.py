"""Every method on one model: held-out perplexity over calibration seeds, seconds and peak memory, as a table.

    python scripts/method_table.py reference --out docs/results/methods-reference
    python scripts/method_table.py FOLDER --text HELDOUT --prefixes TRAIN --out docs/results/methods-NAME

Each seed's calibration set is written by the model itself and shared by all methods, so seeds pair. Cells that the
``cells-*.jsonl`` of the output folder have are not run again; several processes may fill it for different ``--seeds``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from secateur import api
from secateur.evaluation.perplexity import Perplexity, perplexity
from secateur.journal import Journal
from secateur.models.loading import load_model, quiet_transformers
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.recipe_file import load_recipe

METHODS: dict[str, list[str]] = {
    "magnitude": ["pruning.method=magnitude"],
    "wanda": ["pruning.method=wanda"],
    "wanda-variant": ["pruning.method=wanda-variant"],
    "wanda, by matrix": ['pruning.method={"name": "wanda", "group": "matrix"}'],
    "ria": ["pruning.method=ria"],
    "dsnot (wanda)": ["pruning.method=dsnot"],
    "sparseswaps (wanda)": ["pruning.method=sparseswaps"],
    "reconstruct (wanda)": ["pruning.method=reconstruct"],
    "sparsegpt": ["pruning.method=sparsegpt"],
    "admm": ["pruning.method=admm"],
    "alps": ["pruning.method=alps"],
}
ALLOCATED: dict[str, list[str]] = {
    f"{method} + {allocation}": [f"pruning.method={method}", f"pruning.allocation={allocation}"]
    for method in ("wanda", "sparsegpt")
    for allocation in ("owl", "alphapruning", "error", "arithmetic")
}
PROPAGATED: dict[str, list[str]] = {
    f"{method}, {mode}": [f"pruning.method={method}", f"pruning.propagation={mode}"]
    for method in ("wanda", "sparsegpt")
    for mode in ("linear", "dense")
}
TARGETS: dict[str, list[str]] = {
    "50 %": ["pruning.sparsity=0.5"],
    "60 %": ["pruning.sparsity=0.6"],
    "70 %": ["pruning.sparsity=0.7"],
    "4:8": ["pruning.pattern=4:8"],
    "2:4": ["pruning.pattern=2:4"],
}
SETTINGS = [
    "calibration.samples=64",
    "calibration.length=256",
    "evaluation.protocol=concat-512",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--part", default="0", help="names this process's file of cells")
    parser.add_argument("--only", nargs="*", help="rows to run, of those in the table")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--text", help="source of the evaluation text")
    parser.add_argument("--prefixes", help="source of the prefixes for generation")
    parser.add_argument("--dense-4of8", nargs="*", default=[], help="globs of linears whose width 4:8 does not fit")
    parser.add_argument("--store", type=Path, default=Path("secateur-store"))
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="further recipe settings")
    asked = parser.parse_args()
    quiet_transformers()
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, f"evaluation.limit={asked.windows}", *asked.more]
    if asked.dense_4of8:
        TARGETS["4:8"].append(f"pruning.skip={json.dumps(asked.dense_4of8)}")
    settings += [f"evaluation.text={asked.text}"] if asked.text else []
    settings += [f"calibration.generation.prefixes={asked.prefixes}"] if asked.prefixes else []
    chosen = [cell for cell in cells() if not asked.only or any(cell[0] == name for name in asked.only)]
    run_cells(asked.model, settings, asked.seeds, chosen, asked.store, asked.out / f"cells-{asked.part}.jsonl")
    write_table(asked.out, [f"model={asked.model}", *settings])


def cells() -> list[tuple[str, str, list[str]]]:
    """Method, target and settings of every cell; allocations only where the pattern leaves them freedom."""
    everywhere = METHODS | PROPAGATED
    plain = [(name, target, [*how, *what]) for name, how in everywhere.items() for target, what in TARGETS.items()]
    free = {target: what for target, what in TARGETS.items() if target.endswith("%")}
    return plain + [(name, target, [*how, *what]) for name, how in ALLOCATED.items() for target, what in free.items()]


def run_cells(
    model: str, settings: list[str], seeds: list[int], chosen: list[tuple[str, str, list[str]]], store: Path, file: Path
) -> None:
    journal = Journal(file)
    done = {(entry["method"], entry["target"], entry["seed"]) for entry in journal.entries}
    evaluation = plan_evaluation(load_recipe(None, settings, {"model": model}), resolve_model(model))
    text = evaluation.evaluation_text()  # the same for all cells: tokenised once

    def score(folder: Path) -> Perplexity:
        return perplexity(load_model(folder, dtype=torch.float32), text, evaluation.protocol)

    dense = score(evaluation.model.folder)
    settings = [*settings, "evaluation.enabled=false"]
    for seed in seeds:
        for method, target, how in chosen:
            if (method, target, seed) in done or (method == "magnitude" and seed != seeds[0]):
                continue
            recipe = load_recipe(None, [*settings, *how], {"model": model, "seed": seed})
            result = api.prune(recipe, store=store)
            phases = result.manifest["phases"]
            scored = score(result.folder)
            journal.append(
                {
                    "method": method,
                    "target": target,
                    "seed": seed,
                    "perplexity": scored.value,
                    "dense": dense.value,
                    "tokens": scored.tokens,
                    "seconds": phases["prune"]["seconds"] + phases.get("survey", {"seconds": 0})["seconds"],
                    "peak_mib": phases["prune"]["peak_mib"],
                    "sparsity": result.manifest["sparsity"],
                }
            )
            print(method, target, seed, round(scored.value, 3), flush=True)


def write_table(out: Path, settings: list[str]) -> None:
    """``table.md`` from the cells of all processes."""
    found = [entry for path in sorted(out.glob("cells-*.jsonl")) for entry in Journal(path).entries]
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in found:
        by_cell.setdefault((entry["method"], entry["target"]), []).append(entry)
    lines = [
        f"Held-out perplexity after pruning, mean over calibration seeds and half the 95 % interval of that mean "
        f"(Student t); dense {found[0]['dense']:.3f}; {found[0]['tokens']:,} tokens.",
        "",
        f"Settings: `{' '.join(settings)}`",
        "",
        "| method | " + " | ".join(TARGETS) + " | seconds | peak MiB |",
        "|---|" + "---|" * (len(TARGETS) + 2),
    ]
    for method in [*METHODS, *PROPAGATED, *ALLOCATED]:
        mine = [entry for (name, _), entries in by_cell.items() if name == method for entry in entries]
        if mine:
            values = [_cell(by_cell.get((method, target), [])) for target in TARGETS]
            seconds, peak = statistics.median(e["seconds"] for e in mine), max(e["peak_mib"] for e in mine)
            lines.append(f"| {method} | " + " | ".join(values) + f" | {seconds:.1f} | {peak:,.0f} |")
    lines += ["", *paired(by_cell)]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def paired(by_cell: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """What the propagation changes: log perplexity ratio to ``block`` by seed, mean and half its 95 % interval."""
    lines = ["Perplexity relative to propagation `block`, paired by seed (mean of log ratios, 95 % interval):", ""]
    for name in PROPAGATED:
        base = name.partition(",")[0]
        for target in TARGETS:
            one = {entry["seed"]: entry["perplexity"] for entry in by_cell.get((name, target), [])}
            other = {entry["seed"]: entry["perplexity"] for entry in by_cell.get((base, target), [])}
            logs = [math.log(one[seed] / other[seed]) for seed in sorted(one.keys() & other.keys())]
            if len(logs) > 1:
                half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
                mean = statistics.mean(logs)
                verdict = "worse" if mean > half else "better" if mean < -half else "undecided"
                lines.append(f"- {name}, {target}: {mean:+.2%} ± {half:.2%} ({len(logs)} seeds): {verdict}")
    return lines


def _cell(entries: list[dict[str, Any]]) -> str:
    values = [entry["perplexity"] for entry in entries]
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
