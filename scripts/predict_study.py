"""Does any cheap diagnosis of a calibration set predict the quality of the pruned model? On the bundled model.

    python scripts/predict_study.py prune --out docs/results/predict --store STORE     # make the sets, prune, measure
    python scripts/predict_study.py diagnose --out docs/results/predict --store STORE  # diagnose the sets
    python scripts/predict_study.py table --out docs/results/predict                   # rank correlations, table.md

Sets of graded similarity to what the model was trained on, among them real text matched to the perplexity of the generated text.
Every step goes on where it stopped; several processes may share the work by ``--seeds`` and ``--part``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from scipy.stats import t as student

from secateur import api
from secateur.journal import Journal
from secateur.models.batches import make_batches
from secateur.models.forward import default_batch, next_token_logits
from secateur.models.loading import load_model, quiet_transformers
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.recipe_file import load_recipe

MODEL = "reference"
SIZE = ["calibration.samples=32", "calibration.length=256"]
WINDOWS = 12


def _mix(*parts: tuple[str, float]) -> list[str]:
    listed = ", ".join(f"{{source: {name}, weight: {weight}}}" for name, weight in parts)
    return ["calibration.source=mixture", f"calibration.mixture=[{listed}]"]


SELF = ["calibration.source=self"]
PLAIN = ["calibration.generation.top_k=0", "calibration.generation.top_p=1.0"]
PLAIN += ["calibration.generation.repetition_penalty=1.0", "calibration.generation.temperature=1.0"]
SETS: dict[str, list[str]] = {
    "training files": ["calibration.source=stdlib-train"],
    "other code": ["calibration.source=site-packages"],
    "prose": ["calibration.source=prose"],
    "random tokens": ["calibration.source=random-tokens"],
    "half training, half prose": _mix(("stdlib-train", 1), ("prose", 1)),
    "half training, half random": _mix(("stdlib-train", 1), ("random-tokens", 1)),
    "self, the paper's": SELF,
    "self, T 1, unfiltered": [*SELF, *PLAIN, "calibration.filters=[]"],
    "self, T 0.6, no penalty": [*SELF, "calibration.generation.repetition_penalty=1.0"],
    "self, from BOS": [*SELF, "calibration.generation.style=self-calibration"],
    "other code, matched to self": ["calibration.source=site-packages"],
    "training, matched to self": ["calibration.source=stdlib-train"],
}
METHODS = ("wanda", "sparsegpt")
TARGETS: dict[str, list[str]] = {"60 %": ["pruning.sparsity=0.6"], "2:4": ["pruning.pattern=2:4"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prune", "diagnose", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("secateur-store"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--part", default="0", help="names this process's files")
    asked = parser.parse_args()
    quiet_transformers()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.step == "diagnose":
        diagnose_all(asked.seeds, asked.store, asked.out, asked.part)
    elif asked.step == "prune":
        prune_all(asked.seeds, asked.store, asked.out, asked.part)
    else:
        write_table(asked.out)


def set_of(name: str, seed: int, store: Path) -> Path:
    """The calibration set, made if need be."""
    settings = [*SIZE, *SETS[name]]
    if name.endswith("matched to self"):
        settings.append(f"calibration.selection={{name: matched, to: '{set_of(PAPERS, seed, store)}'}}")
    return api.generate(load_recipe(None, settings, {"model": MODEL, "seed": seed}), store=store).folder


PAPERS = "self, the paper's"


def diagnose_all(seeds: Sequence[int], store: Path, out: Path, part: str) -> None:
    from secateur.pipeline.profile import diagnose

    journal = Journal(out / f"sets-{part}.jsonl")
    done = {(entry["set"], entry["seed"]) for path in out.glob("sets-*.jsonl") for entry in Journal(path).entries}
    for seed in seeds:
        for name in SETS:
            if (name, seed) in done:
                continue
            folder = set_of(name, seed, store)
            found = diagnose(folder, MODEL, reference="stdlib-train")
            journal.append({"set": name, "seed": seed, "diagnosis": found})
            print(name, seed, len(found), flush=True)


def prune_all(seeds: Sequence[int], store: Path, out: Path, part: str) -> None:
    journal = Journal(out / f"cells-{part}.jsonl")
    done = {(entry["set"], entry["seed"], entry["method"], entry["target"]) for entry in journal.entries}
    score = _scorer()
    for seed in seeds:
        for name in SETS:
            for method in METHODS:
                for target, how in TARGETS.items():
                    if (name, seed, method, target) in done:
                        continue
                    settings = [f"calibration.source={set_of(name, seed, store)}", f"pruning.method={method}", *how]
                    recipe = load_recipe(None, [*settings, "evaluation.enabled=false"], {"model": MODEL, "seed": seed})
                    folder = api.prune(recipe, store=store).folder
                    loss, kl = score(folder)
                    shutil.rmtree(folder)
                    journal.append(
                        {"set": name, "seed": seed, "method": method, "target": target, "loss": loss, "kl": kl}
                    )
                    print(name, seed, method, target, round(math.exp(loss), 3), round(kl, 4), flush=True)


def _scorer() -> Callable[[Path], tuple[float, float]]:
    """Mean loss and KL to the dense model on held-out text, in nats a token; the dense logits are kept."""
    stage = plan_evaluation(
        load_recipe(None, ["evaluation.protocol=concat-512", f"evaluation.limit={WINDOWS}"], {"model": MODEL}),
        resolve_model(MODEL),
    )
    sequences = stage.evaluation_text().sequences
    dense = load_model(stage.model.folder, dtype=torch.float32)
    batches = make_batches(sequences, default_batch(dense, sequences))
    kept = []
    for batch in batches:
        logits, counted = next_token_logits(dense, batch)
        p = logits[counted].log_softmax(-1)
        kept.append((p, p.exp(), batch.ids[:, 1:][counted]))

    def score(folder: Path) -> tuple[float, float]:
        model = load_model(folder, dtype=torch.float32)
        loss = kl = tokens = 0.0
        for batch, (p, weights, targets) in zip(batches, kept, strict=True):
            logits, counted = next_token_logits(model, batch)
            q = logits[counted].log_softmax(-1)
            loss -= float(q.gather(1, targets[:, None]).sum())
            kl += float((weights * (p - q)).sum())
            tokens += len(targets)
        return loss / tokens, kl / tokens

    return score


def write_table(out: Path) -> None:
    sets = [entry for path in sorted(out.glob("sets-*.jsonl")) for entry in Journal(path).entries]
    cells = [entry for path in sorted(out.glob("cells-*.jsonl")) for entry in Journal(path).entries]
    lines = ["# Which calibration set prunes the bundled model best, and does a diagnosis tell beforehand?", ""]
    lines += [*_quality(cells), "", *_controls(cells), ""]
    results: dict[str, Any] = {}
    for title, left_out in (("all sets", ()), ("without random tokens", ("random",))):
        used = [entry for entry in sets if not any(word in entry["set"] for word in left_out)]
        found = correlations(used, cells)
        results[title] = found
        lines += [*_correlation_table(title, len({entry["set"] for entry in used}), found), ""]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    (out / "correlations.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(lines))


def _by(cells: Sequence[dict[str, Any]], value: str) -> dict[tuple[str, str, str], dict[int, float]]:
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for cell in cells:
        found.setdefault((cell["set"], cell["method"], cell["target"]), {})[cell["seed"]] = cell[value]
    return found


def _quality(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Perplexity of every set, the mean over seeds and half its interval."""
    by = _by(cells, "loss")
    columns = [(method, target) for method in METHODS for target in TARGETS]
    lines = ["Held-out perplexity (geometric mean over seeds, half the 95 % interval in per cent of it):", ""]
    lines += [
        "| set | " + " | ".join(f"{m}, {t}" for m, t in columns) + " | seeds |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for name in SETS:
        shown, counts = [], [0]
        for column in columns:
            losses = list(by.get((name, *column), {}).values())
            counts.append(len(losses))
            mean, half = interval(losses)
            shown.append(f"{math.exp(mean):.2f} ± {half:.1%}" if losses else "")
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {max(counts)} |")
    return lines


def _controls(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Self-generated text against real text of the same perplexity and others, paired by seed."""
    by = _by(cells, "loss")
    lines = [
        f'Log perplexity of "{PAPERS}" less that of another set, paired by seed (below 0: the generated text is better):',
        "",
    ]
    for other in [name for name in SETS if name != PAPERS]:
        shown = []
        for method in METHODS:
            for target in TARGETS:
                one, two = by.get((PAPERS, method, target), {}), by.get((other, method, target), {})
                differences = [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]
                mean, half = interval(differences)
                verdict = "undecided" if not abs(mean) > half else "better" if mean < 0 else "worse"
                shown.append(f"{method} {target} {mean:+.3f} ± {half:.3f} ({verdict})")
        lines.append(f"- {other}: " + "; ".join(shown))
    return lines


def correlations(sets: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Spearman's rank correlation over the sets of one seed, of each diagnosis with each outcome: its mean over seeds and half
    the 95 % interval."""
    found: dict[str, dict[str, list[float]]] = {}
    for value in ("loss", "kl"):
        by = _by(cells, value)
        for method in METHODS:
            for target in TARGETS:
                for key in sorted(set.intersection(*(set(entry["diagnosis"]) for entry in sets))):
                    rhos = []
                    for seed in sorted({entry["seed"] for entry in sets}):
                        pairs = [
                            (entry["diagnosis"][key], by.get((entry["set"], method, target), {}).get(seed))
                            for entry in sets
                            if entry["seed"] == seed
                        ]
                        xs, ys = zip(
                            *[pair for pair in pairs if pair[1] is not None and np.isfinite(pair[0])] or [(0, 0)],
                            strict=True,
                        )
                        if len(xs) > 4 and len(set(xs)) > 1:
                            found_rho: Any = spearmanr(xs, ys)
                            rhos.append(float(found_rho.statistic))
                    if len(rhos) > 1:
                        found.setdefault(key, {})[f"{value}, {method}, {target}"] = [
                            round(x, 4) for x in interval(rhos)
                        ]
    return found


def _correlation_table(title: str, count: int, found: dict[str, dict[str, list[float]]]) -> list[str]:
    columns = sorted({column for row in found.values() for column in row})
    strength = {key: statistics.mean(abs(mean) for mean, _ in row.values()) for key, row in found.items()}
    lines = [
        f"Rank correlation with loss and KL after pruning, {title} ({count}), mean over seeds ± half the 95 % interval:",
        "",
    ]
    lines += ["| diagnosis | " + " | ".join(columns) + " | mean size |", "|---|" + "---|" * (len(columns) + 1)]
    for key in sorted(found, key=lambda key: -strength[key]):
        shown = [f"{found[key][c][0]:+.2f} ± {found[key][c][1]:.2f}" if c in found[key] else "" for c in columns]
        lines.append(f"| {key} | " + " | ".join(shown) + f" | {strength[key]:.2f} |")
    return lines


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of that mean (Student t)."""
    if len(values) < 2:
        return (values[0], math.nan) if values else (math.nan, math.nan)
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


if __name__ == "__main__":
    main()
