"""The speed of pruning: Secateur beside llm-compressor and a textbook loop, on one model and the same tokens.

    python benchmarks/speed.py --shape A --dtype bfloat16 --method sparsegpt
    python benchmarks/speed.py --shape A --marginal

Every run is a fresh process; the programs take turns in every repeat. benchmarks/README.md says what is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import report
from peers.measuring import RESULT, Request, agreement
from workload import SHAPES, Shape, write_model, write_tokens

HERE = Path(__file__).resolve().parent
PEER_PACKAGES = ("torch==2.13.0", "llmcompressor==0.14.0.1")  # torch first, so that the peer does not choose another
PEER, TEXTBOOK = "llm-compressor", "textbook"
TOOLS = (PEER, TEXTBOOK, "block", "linear", "dense")
"""``block``, ``linear`` and ``dense`` are Secateur's propagations."""
Configuration = tuple[str, float, str]
"""Method, sparsity and pattern."""
CONFIGURATIONS: list[Configuration] = [("wanda", percent / 100, "unstructured") for percent in (30, 40, 50, 60, 70)]
CONFIGURATIONS += [("sparsegpt", 0.5, "unstructured"), ("sparsegpt", 0.6, "unstructured"), ("sparsegpt", 0.5, "2:4")]


@dataclass
class Bench:
    """What all runs of one call share: where things lie, what is asked, and the results by tool, a list over repeats."""

    arguments: argparse.Namespace
    shape: Shape
    model: Path
    runs: Path
    peer: Path | None
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)

    def run(self, tool: str, label: str = "", configurations: Sequence[Configuration] = ()) -> None:
        """One run of ``tool`` in a process of its own; its result is kept under ``label``, by default the tool's name.

        Several ``configurations`` share one pass. Raises ``SystemExit`` when the run fails or did not prune as asked.
        """
        label = label or tool
        past = self.results.setdefault(label, [])
        out = Path(tempfile.mkdtemp(prefix=f"{tool}-", dir=self.runs))
        request = self._request(tool, out, configurations)
        request.write(out / "request.json")
        python, program = self._program(tool)
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(self.arguments.threads))
        with (out / "log").open("w") as log:
            done = subprocess.run(
                [python, HERE / "peers" / program, out / "request.json"], env=environment, stdout=log, stderr=log
            )
        if done.returncode:
            tail = "\n".join((out / "log").read_text().splitlines()[-15:])
            raise SystemExit(f"{label} ended with exit status {done.returncode}; the end of what it said:\n{tail}")
        past.append(json.loads((out / RESULT).read_text()))
        for pruned in out.glob("model-*"):
            shutil.rmtree(pruned)
        if "sparsity" in past[-1]:
            check(label, past[-1], request.sparsity, self.shape)
            self.masks.setdefault(label, out)
        print(f"  {label}: {past[-1]['wall']:.1f} s", file=sys.stderr, flush=True)

    def _request(self, tool: str, out: Path, configurations: Sequence[Configuration]) -> Request:
        asked = self.arguments
        method, sparsity, pattern = (asked.method, asked.sparsity, asked.pattern)
        if len(configurations) == 1:
            method, sparsity, pattern = configurations[0]
        propagation = "block" if tool in (PEER, TEXTBOOK) else tool
        return Request(
            str(self.model), str(self.runs), str(out), method, pattern, sparsity, asked.batch, propagation,
            list(configurations) if len(configurations) > 1 else [],
        )  # fmt: skip

    def _program(self, tool: str) -> tuple[Path, str]:
        if tool == PEER:
            assert self.peer is not None
            return self.peer, "llmcompressor_prune.py"
        return Path(sys.executable), "textbook.py" if tool == TEXTBOOK else "secateur_prune.py"


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def check(label: str, result: dict[str, Any], sparsity: float, shape: Shape) -> None:
    """Raise ``SystemExit`` unless every linear has the asked sparsity (to a weight a row) and keeps the N:M pattern."""
    furthest = max(abs(result[key] - sparsity) for key in ("sparsity", "sparsity_least", "sparsity_most"))
    if furthest > 1 / shape.hidden or result["bad_groups"]:
        raise SystemExit(
            f"{label} was asked for {sparsity:.1%} zeros but its linears have {result['sparsity_least']:.2%} to "
            f"{result['sparsity_most']:.2%}, and {result['bad_groups']} groups break the N:M pattern. Its time means nothing."
        )


def make_peer(folder: Path) -> Path:
    """The Python of llm-compressor's virtual environment, made in ``folder`` if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"Making a virtual environment for {PEER} in {folder} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for package in PEER_PACKAGES:
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
        (folder / "complete").touch()
    return python


def compare(bench: Bench, tools: list[str]) -> dict[str, Any]:
    """Run the tools in turn, repeat by repeat, each time starting with another one; what to print and keep."""
    for repeat in range(bench.arguments.repeats):
        turn = repeat % len(tools)
        for tool in tools[turn:] + tools[:turn]:
            bench.run(tool)
    equal = {tool: agreement(bench.masks[tool], bench.masks[TEXTBOOK]) for tool in tools if TEXTBOOK in bench.masks}
    return report.summarise(bench.arguments, bench.shape, bench.results, equal, PEER if PEER in tools else tools[0])


def marginal(bench: Bench) -> dict[str, Any]:
    """All configurations in one pass over the dense model, and each alone."""
    names = [
        f"{method} {pattern if ':' in pattern else f'{sparsity:.0%}'}" for method, sparsity, pattern in CONFIGURATIONS
    ]
    for _ in range(bench.arguments.repeats):
        bench.run("dense", "together", CONFIGURATIONS)
        for name, configuration in zip(names, CONFIGURATIONS, strict=True):
            bench.run("dense", name, [configuration])
    return report.summarise_marginal(bench.results, names)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--blocks", type=int, help="fewer or more blocks than the shape's own")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--method", choices=["wanda", "sparsegpt"], default="wanda")
    parser.add_argument("--pattern", default="unstructured", help="unstructured, or N:M such as 2:4")
    parser.add_argument("--sparsity", type=float, default=0.5, help="with an N:M pattern: its own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4, help="samples at once in Secateur; the others take one")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="those to run")
    parser.add_argument("--no-peer", action="store_true", help=f"without {PEER}")
    parser.add_argument("--peer-python", type=Path, help=f"Python of a virtual environment that has {PEER}")
    parser.add_argument("--marginal", action="store_true", help="the cost of further configurations in one pass")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "benchmarks", help="folder for all files")
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    keep, _, group = arguments.pattern.partition(":")
    if group:
        arguments.sparsity = 1 - int(keep) / int(group)
    tools = [tool for tool in TOOLS if tool in arguments.tools and not (tool == PEER and arguments.no_peer)]
    needs_peer = PEER in tools and not arguments.marginal
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[arguments.shape]
    shape = replace(shape, blocks=arguments.blocks or shape.blocks)
    model = write_model(shape, arguments.dtype, work / f"{arguments.shape}-{shape.blocks}-{arguments.dtype}")
    peer = (arguments.peer_python or make_peer(work / "llm-compressor")) if needs_peer else None
    with tempfile.TemporaryDirectory(prefix="runs-", dir=work) as runs:
        write_tokens(arguments.samples, arguments.length, Path(runs))
        bench = Bench(arguments, shape, model, Path(runs), peer)
        found = marginal(bench) if arguments.marginal else compare(bench, tools)
    found["asked"] = {key: value for key, value in vars(arguments).items() if key not in {"work", "out", "peer_python"}}
    found["machine"] = {"processor": report.processor(), "system": platform.platform(), "cores": os.cpu_count()}
    print(f"\n{found['machine']['processor']}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    print("\n".join(found.pop("lines")))
    if arguments.out:
        arguments.out.write_text(json.dumps(found | {"results": bench.results}, indent=1))


if __name__ == "__main__":
    main()
