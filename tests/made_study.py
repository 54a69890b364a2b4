"""A plausible folder of a study, made up from fixed seeds: 4 sources, 3 sparsities, 2 methods, 5 repeats, controls, holes."""

from __future__ import annotations

import hashlib
import json
import math
import random
from itertools import product
from pathlib import Path

import pyarrow
import pyarrow.parquet
from scipy import stats

HOSTILE = '</script><img src=x onerror="alert(1)"> & "quoted" $x_1$ `tick` | pipe \\ # % ~ ^ {brace}'
RTL = "\u05e9\u05dc\u05d5\u05dd \u202eevil\u202c \u0645\u0631\u062d\u0628\u0627"
LONG = "a" * 400
SOURCES = ["self", "training files", HOSTILE, RTL]
SPARSITIES, METHODS, SEEDS = ["0.5", "0.6", "0.7"], ["wanda", "sparsegpt"], [0, 1, 2, 3, 4]
METRICS = ["perplexity", "cloze/acc"]
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
DENSE = {"perplexity": 6.05, "cloze/acc": 0.71}
ERROR = f"Out of memory after 3 of 4 blocks: {HOSTILE}"


def make_study(
    folder: Path, *, finished=True, sources=SOURCES, sparsities=SPARSITIES, methods=METHODS, metrics=METRICS
) -> Path:
    """Write the folder as ``secateur study`` would; the same each time."""
    folder.mkdir(parents=True)
    cells = _cells(sources, sparsities, methods)
    axes = [
        {"name": "source", "labels": sources, "values": None},
        {"name": "sparsity", "labels": sparsities, "values": [*map(float, sparsities)]},
        {"name": "method", "labels": methods, "values": None},
    ]
    facts = {
        "question": "Does text that the model wrote itself prune better than its own training files?",
        "digest": "5" * 64,
        "model": {"name": "reference", "digest": "7" * 64},
        "recipe": {"model": "reference", "pruning": {"pattern": "unstructured"}},
        "axes": axes,
        "repeats": SEEDS,
        "controls": ["dense", "magnitude", "random tokens"],
        "excluded": 0,
        "comparisons": [{"kind": kind, "axis": "source"} for kind in ("difference", "spread", "correlation")],
        "metric": {"name": "perplexity", "better": "lower"},
        "metrics": metrics,
        "environment": {"python": "3.11", "libraries": {"torch": "2.13"}, "cpus": 2},
        "cost": {"seconds": 5400.0, "cpu_seconds": 10100.0, "cells": len(cells), "done": len(cells) - 1, "failed": 1,
                 "peak_gib": 1.25},
        "command": "secateur study study.yaml --out out",
    }  # fmt: skip
    _write(folder / "study.json", facts)
    (folder / "study.yaml").write_text(f"question: {facts['question']}\n# {HOSTILE}\n", encoding="utf-8")
    rows = [row for cell in cells for row in _rows(cell, metrics)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "results.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_linears(cells)), folder / "linears.parquet")
    _write(folder / "answers.json", _answers(cells, sources, sparsities, methods))
    _write(folder / "masks.json", _masks(sources, sparsities, methods))
    _write(folder / "samples.json", _samples(sources))
    if finished:
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
        _write(folder / "manifest.json", {"spec_digest": "6" * 64, "spec": {}, "kind": "study", "secateur": "0.1.0",
                                          "finished": "2026-01-01T00:00:00Z", "files": files})  # fmt: skip
    return folder


def _write(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _perplexity(source: int, sparsity: float, method: str, rng: random.Random) -> float:
    harm = (0.4 if method == "wanda" else 0.25) * math.exp(12 * (sparsity - 0.5))
    return DENSE["perplexity"] * math.exp(harm * (1 + 0.18 * source)) * math.exp(rng.gauss(0, 0.02 * harm + 0.003))


def _cells(sources: list[str], sparsities: list[str], methods: list[str]) -> list[dict]:
    cells = []
    for source, sparsity, method, seed in product(sources, sparsities, methods, SEEDS):
        number = sources.index(source)
        rng = random.Random(f"{number} {sparsity} {method} {seed}")
        place = {"source": source, "sparsity": sparsity, "method": method}
        cells.append(
            {"where": place, "seed": seed, "control": "", "value": _perplexity(number, float(sparsity), method, rng)}
        )
    for sparsity, method, seed in product(sparsities, methods, SEEDS):
        rng = random.Random(f"random {sparsity} {method} {seed}")
        place = {"source": "", "sparsity": sparsity, "method": method}
        value = _perplexity(6, float(sparsity), method, rng)
        cells.append({"where": place, "seed": seed, "control": "random tokens", "value": value})
    for sparsity in sparsities:
        place = {"source": "", "sparsity": sparsity, "method": ""}
        value = DENSE["perplexity"] * math.exp(9 * (float(sparsity) - 0.4) ** 1.2)
        cells.append({"where": place, "seed": 0, "control": "magnitude", "value": value})
    cells.append({"where": {"source": "", "sparsity": "", "method": ""}, "seed": 0, "control": "dense", "value": 6.05})
    for number, cell in enumerate(cells):
        cell["digest"] = f"{number:012x}"
        cell["failed"] = number == 7
    return cells


def _rows(cell: dict, metrics: list[str]) -> list[dict]:
    rows = []
    for metric in metrics:
        ratio = math.log(cell["value"] / DENSE["perplexity"])
        value = {"perplexity": cell["value"], "cloze/acc": 0.25 + 0.46 * math.exp(-ratio)}[metric]
        rows.append(
            {
                "cell": cell["digest"], **cell["where"], "seed": cell["seed"], "control": cell["control"],
                "status": "failed" if cell["failed"] else "done", "error": ERROR if cell["failed"] else "",
                "metric": metric, "value": None if cell["failed"] else value, "set_digest": "a" * 64,
                "pruned_digest": "b" * 64, "evaluation_digest": "c" * 64, "seconds": 40.0, "peak_gib": 1.2,
            }
        )  # fmt: skip
    return rows


def _linears(cells: list[dict]) -> list[dict]:
    rows = []
    for cell in cells:
        if cell["control"] == "dense" or cell["failed"]:
            continue
        rng = random.Random(cell["digest"])
        for block, linear in product(range(4), LINEARS):
            error = 0.02 * (1 + block) * (1 + LINEARS.index(linear)) * rng.uniform(0.9, 1.1) * cell["value"] / 6
            error = None if cell["control"] == "magnitude" else min(error, 1.0)
            rows.append({"cell": cell["digest"], "block": block, "linear": linear, "sparsity": 0.5, "error": error})
    return rows


def interval(values: list[float]) -> tuple[float, float, float]:
    mean = sum(values) / len(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
    return mean, float(low), float(high)


def _answers(cells: list[dict], sources: list[str], sparsities: list[str], methods: list[str]) -> list[dict]:
    def series(source, sparsity, method):
        where = {"source": source, "sparsity": sparsity, "method": method}
        return {
            cell["seed"]: cell["value"]
            for cell in cells
            if cell["where"] == where and not (cell["failed"] or cell["control"])
        }

    groups = []
    for sparsity, method in product(sparsities, methods):
        a, b = series(sources[0], sparsity, method), series(sources[1], sparsity, method)
        groups.append(_group({"sparsity": sparsity, "method": method}, sources[0], sources[1], a, b))
    whole = [sum(group["pairs"][n]["difference"] for group in groups) / len(groups) for n in range(3)]
    mean, low, high = interval(whole)
    first = {
        "question": "Is 'self' better than 'training files'?", "kind": "difference", "metric": "perplexity",
        "sentence": f"perplexity against 'training files': 'self' {math.expm1(mean):+.2%} (95 % interval "
        f"{math.expm1(low):+.2%} to {math.expm1(high):+.2%}, 3 paired seeds): supported.",
        "verdict": "supported", "estimate": mean, "low": low, "high": high, "level": 0.95, "unit": "log perplexity",
        "adjustment": "Holm over 6 tests", "groups": groups,
    }  # fmt: skip
    levels = [
        {"label": one, "labels": 4, "estimate": 0.1 * n, "low": 0.08 * n, "high": 0.12 * n, "noise": 0.02 * n}
        for n, one in enumerate(sparsities, 1)
    ]
    second = {
        "question": f"Does the range over source grow along sparsity? {HOSTILE}", "kind": "spread",
        "metric": "perplexity", "sentence": "The range grows by 1.1 log perplexity per unit: undecided that it grows.",
        "verdict": "undecided", "estimate": 1.1, "low": -0.2, "high": 2.4, "level": 0.95,
        "unit": "log perplexity per unit of sparsity", "adjustment": "no test",
        "groups": [{"where": {"method": method}, "estimate": 1.1, "low": -0.2, "high": 2.4, "n": 5, "levels": levels,
                    "verdict": "undecided", "pairs": [{"seed": s, "difference": 1.1 + 0.3 * (s - 2)} for s in SEEDS]}
                   for method in methods],
    }  # fmt: skip
    third = {
        "question": "Do sets with more jaccard prune better?", "kind": "correlation", "metric": "cloze/acc",
        "sentence": "The rank correlation of jaccard with cloze/acc is -0.62: not supported that more of it is better.",
        "verdict": "not supported", "estimate": -0.62, "low": -0.9, "high": -0.2, "level": 0.95, "unit": "Spearman's rho",
        "adjustment": "", "fact": "jaccard",
        "groups": [{"where": {"sparsity": sparsities[0], "method": methods[0]}, "estimate": -0.62, "low": -0.9, "high": -0.2, "n": len(SEEDS),
                    "points": [{"seed": seed, "label": source, "fact": 0.1 * place + seed / 100, "value": 0.5 - 0.05 * place}
                               for seed in SEEDS for place, source in enumerate(sources)]}],
    }  # fmt: skip
    return [first, second, third]


def _group(where: dict, a: str, b: str, ones: dict, others: dict) -> dict:
    seeds = sorted(ones.keys() & others.keys())
    differences = [math.log(ones[seed]) - math.log(others[seed]) for seed in seeds]
    mean, low, high = interval(differences)
    return {
        "where": where, "a": a, "b": b, "estimate": mean, "low": low, "high": high,
        "bootstrap_low": min(differences), "bootstrap_high": max(differences), "n": len(seeds),
        "p": float(stats.ttest_1samp(differences, 0).pvalue), "p_adjusted": 0.02,
        "verdict": "supported" if high < 0 else "undecided",
        "pairs": [{"seed": seed, "a": ones[seed], "b": others[seed], "difference": value}
                  for seed, value in zip(seeds, differences, strict=True)],
    }  # fmt: skip


def _masks(sources: list[str], sparsities: list[str], methods: list[str]) -> dict:
    rng = random.Random(3)
    kinds = []
    for sparsity, method in product(sparsities, methods):
        where = {"sparsity": sparsity, "method": method}
        for source in sources:
            kinds.append({"name": "other seed", "where": {"source": source, **where}, "a": "seed", "b": "other seed",
                          "jaccard": 0.9 + rng.uniform(-0.01, 0.01), "agreement": 0.95, "n": 3})  # fmt: skip
        for n, source in enumerate(sources[1:], 1):
            kinds.append({"name": "other source", "where": where, "a": sources[0], "b": source,
                          "jaccard": 0.9 - 0.04 * n + rng.uniform(-0.01, 0.01), "agreement": 0.9, "n": 3})  # fmt: skip
    return {"kinds": kinds, "note": "Jaccard index of the pruned positions, mean over the linears."}


def _samples(sources: list[str]) -> dict:
    texts = ["def read(path):\n    return open(path).read()\n" * 4, HOSTILE, RTL, LONG]
    return {
        source: {"kept": texts[:3], "dropped": [{"text": LONG, "reason": f"perplexity {HOSTILE}", "value": 91.2}],
                 "tokens": 16384, "samples": 64}
        for source in sources
    }  # fmt: skip
