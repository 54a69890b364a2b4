"""From the runs of a benchmark to medians, spreads, ratios over paired repeats, and the lines that show them."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from workload import Floor, Shape, floor

Results = dict[str, list[dict[str, Any]]]
CLOCKS = ("wall", "cpu")
SECATEUR = ("block", "linear", "dense")
PHASES = ("load", "forward", "statistics", "solve", "save")
TARGETS = {
    ("wanda", "float32"): (1.5, 2.3),
    ("wanda", "bfloat16"): (2.2, 3.3),
    ("sparsegpt", "float32"): (2.0, 3.0),
    ("sparsegpt", "bfloat16"): (2.6, 3.5),
}
"""How many times as fast as llm-compressor: in propagation block, and in the fastest one."""


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def ratios(base: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], clock: str) -> dict[str, float]:
    """How many times as long ``base`` took, over the pairs of runs of one repeat."""
    return spread([one[clock] / two[clock] for one, two in zip(base, other, strict=True)])


def shown(found: dict[str, float], digits: int = 2) -> str:
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f}-{found['most']:.{digits}f})"


def summarise(
    asked: argparse.Namespace, shape: Shape, results: Results, equal: dict[str, float], base: str
) -> dict[str, Any]:
    """The comparison: ``lines`` to print, and the numbers by tool. Ratios are to ``base``."""
    tools: dict[str, Any] = {}
    for tool, runs in results.items():
        tools[tool] = {
            "wall": spread([run["wall"] for run in runs]),
            "cpu": spread([run["cpu"] for run in runs]),
            "wall_ratio": ratios(results[base], runs, "wall"),
            "cpu_ratio": ratios(results[base], runs, "cpu"),
            "peak_mib": spread([run["peak_bytes"] / 2**20 for run in runs]),
            "sparsity": runs[0]["sparsity"],
            "same_mask_as_textbook": equal.get(tool),
            "phases": {clock: _phases(runs, clock) for clock in CLOCKS},
        }
    floors = _floors(asked, shape, results)
    lines = [_headline(asked, results), "", *_table(tools, base)]
    for clock in CLOCKS:
        lines += ["", *_phase_table(tools, clock)]
    if floors:
        lines += ["", *_floor_lines(tools, floors)]
    if base == "llm-compressor":
        lines += _target_lines(asked, tools)
    return {"base": base, "tools": tools, "floor": {k: vars(f) for k, f in floors.items()}, "lines": lines}


def _headline(asked: argparse.Namespace, results: Results) -> str:
    runs = list(chain.from_iterable(results.values()))
    versions = sorted({f"torch {run['torch']}, transformers {run['transformers']}" for run in runs})
    found = {(run["threads"], run["dtype"]) for run in runs}
    computed = ", ".join(f"{threads} thread(s) {dtype.removeprefix('torch.')}" for threads, dtype in sorted(found))
    return (
        f"{asked.method} {asked.pattern} {asked.sparsity:.0%}, shape {asked.shape}, {asked.samples} x {asked.length} tokens, "
        f"{asked.repeats} repeats; computed with {computed}; {' | '.join(versions)}"
    )


def _phases(runs: Sequence[dict[str, Any]], clock: str) -> dict[str, float]:
    """Median seconds by phase; ``other`` is what no phase accounts for."""
    found = {name: median(run["phases"].get(name, {clock: 0.0})[clock] for run in runs) for name in PHASES}
    booked = [sum(moment[clock] for moment in run["phases"].values()) for run in runs]
    found["other"] = median(run[clock] - seconds for run, seconds in zip(runs, booked, strict=True))
    return found


def _name(tool: str) -> str:
    return f"secateur {tool}" if tool in SECATEUR else tool


def _table(tools: dict[str, Any], base: str) -> list[str]:
    heads = ("", "wall s", "CPU s", f"{base} / wall", "/ CPU", "peak MiB", "zeros", "= textbook")
    lines = ["{:16} {:>20} {:>20} {:>22} {:>17} {:>9} {:>8} {:>11}".format(*heads)]
    for tool, found in tools.items():
        same = found["same_mask_as_textbook"]
        lines.append(
            f"{_name(tool):16} {shown(found['wall']):>20} {shown(found['cpu']):>20} {shown(found['wall_ratio']):>22} "
            f"{shown(found['cpu_ratio']):>17} {found['peak_mib']['median']:>9,.0f} {found['sparsity']:>8.2%} "
            f"{'' if same is None else f'{same:.3%}':>11}"
        )
    return lines


def _phase_table(tools: dict[str, Any], clock: str) -> list[str]:
    columns = (*PHASES, "other")
    lines = [f"{clock + ' s by phase':16} " + " ".join(f"{name:>10}" for name in columns)]
    for tool, found in tools.items():
        lines.append(f"{_name(tool):16} " + " ".join(f"{found['phases'][clock][name]:>10.2f}" for name in columns))
    return lines


def _floors(asked: argparse.Namespace, shape: Shape, results: Results) -> dict[str, Floor]:
    """By clock, the run of median forward seconds among all that timed the machine's matrix products."""
    runs = [run for tool in SECATEUR for run in results.get(tool, [])]
    if not runs:
        return {}
    tokens = asked.samples * asked.length
    found: dict[str, Floor] = {}
    for clock in CLOCKS:
        floors = [floor(shape, tokens, asked.method, run, clock) for run in runs]
        found[clock] = sorted(floors, key=lambda one: one.forward)[len(floors) // 2]
    return found


def _floor_lines(tools: dict[str, Any], floors: dict[str, Floor]) -> list[str]:
    wall, cpu = floors["wall"], floors["cpu"]
    lines = [
        f"Floor: {wall.flops / 1e9:,.1f} GFLOP at {wall.rate / 1e9:,.1f} GFLOP/s = {wall.seconds:.2f} s "
        f"(linears forward once {wall.forward:.2f}, Grams and Choleskys once {wall.gram:.2f}); {cpu.seconds:.2f} CPU s"
    ]
    for tool, found in tools.items():
        found["distance_from_floor"] = {
            "wall": found["wall"]["median"] / wall.seconds,
            "cpu": found["cpu"]["median"] / cpu.seconds,
        }
        distance = found["distance_from_floor"]
        lines.append(f"  {_name(tool):16} {distance['wall']:.2f} times the floor ({distance['cpu']:.2f} by CPU time)")
    return lines


def _target_lines(asked: argparse.Namespace, tools: dict[str, Any]) -> list[str]:
    """The targets, where they were set for what was asked."""
    if asked.shape not in ("A", "B") or (asked.samples, asked.length, asked.pattern) != (16, 512, "unstructured"):
        return []
    in_block, fastest = TARGETS[asked.method, asked.dtype]
    lines = [""]
    for label, target, among in (("block", in_block, ("block",)), ("fastest", fastest, SECATEUR)):
        reached = {tool: tools[tool]["cpu_ratio"]["median"] for tool in among if tool in tools}
        if reached:
            best = max(reached, key=reached.__getitem__)
            verdict = "met" if reached[best] >= target else "short"
            lines.append(
                f"Target ({label}): {target}x llm-compressor by CPU time; {best} {reached[best]:.2f}x: {verdict}"
            )
    return lines


def summarise_marginal(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """What each configuration adds to a shared pass (its own solving, reading and saving), against a run alone."""
    together = results["together"]
    whole = median(run["wall"] for run in together)
    rows: dict[str, dict[str, float]] = {}
    for number, name in enumerate(names):
        added = [
            sum(run["phases"].get(f"{p} {number}", {"wall": 0.0})["wall"] for p in ("solve", "save"))
            for run in together
        ]
        rows[name] = {"alone": median(run["wall"] for run in results[name]), "added": median(added)}
    alone = sum(row["alone"] for row in rows.values())
    dearest = max(row["alone"] for row in rows.values())
    lines = [f"{'wall s':16} {'alone':>9} {'added':>9} {'share':>8}"]
    for name, row in rows.items():
        lines.append(f"{name:16} {row['alone']:>9.2f} {row['added']:>9.2f} {row['added'] / row['alone']:>8.1%}")
    each = (whole - dearest) / (len(names) - 1)
    lines += [
        f"All {len(names)} in one pass: {whole:.2f} s; one after another: {alone:.2f} s, {alone / whole:.2f} times as long.",
        f"Beyond the dearest run alone ({dearest:.2f} s) each further configuration took {each:.2f} s on average.",
    ]
    return {"together": whole, "alone": alone, "each_further": each, "configurations": rows, "lines": lines}


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
