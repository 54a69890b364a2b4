"""The same model and the same calibration set in Secateur and in llm-compressor: do their masks and perplexities agree?

    python benchmarks/real_parity.py MODEL --calibration TEXTS --text TEST --out docs/results/smollm2/parity

MODEL: a folder of a Llama. TEXTS: texts to calibrate on (jsonl, jsonl.gz, txt). TEST: what perplexity is measured on.
Made are one calibration set, exported as a Hugging Face data set; the model in float32 (its stored numbers, exactly);
and with each program, method and pattern a pruned copy, all on the very same token ids: it is checked what llm-compressor's
embedding was shown. Then controls, each with one thing changed:

- ``their inputs``: Secateur prunes each block on what llm-compressor's pruned blocks before it put out
- ``their inputs, <=``: the same, with the original SparseGPT program's threshold
- ``secateur, one at a time``: samples go through a block one by one instead of by fours
- ``llm-compressor, backwards``: the same samples from the last to the first
- ``secateur, linear`` and ``dense``: another propagation

What is there already in the folder --work is not made again. --only 'wanda 2:4' takes some of the prunings, --without
leaves controls out. llm-compressor's own virtual environment is made as by speed.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import parity_report as report
import torch
from parity_report import OURS, THEIRS, Row, compare, score_gap
from peers.llmcompressor_folder import IDS, RESULT, WEIGHTS, FolderRequest
from peers.secateur_replay import replay
from report import processor
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from speed import make_peer

from secateur import Recipe, evaluate, export_set, generate, prune
from secateur.methods import METHODS
from secateur.pipeline.calibrate import load_set

HERE = Path(__file__).resolve().parent
SINGLY, BACKWARDS = f"{OURS}, one at a time", f"{THEIRS}, backwards"
REPLAYED, INCLUSIVE = f"{OURS}, their inputs", f"{OURS}, their inputs, <="
LINEAR, DENSE = f"{OURS}, linear", f"{OURS}, dense"
CONTROLS = (REPLAYED, SINGLY, BACKWARDS, LINEAR, DENSE)
DAMPING, BLOCK = 0.01, 128
DIFFERENT: dict[str, dict[str, Any]] = {
    OURS: {},
    SINGLY: {"batch_size": 1},
    LINEAR: {"propagation": "linear"},
    DENSE: {"propagation": "dense"},
}
"""What of the recipe's pruning each of Secateur's runs has otherwise."""


@dataclass(frozen=True)
class Pruning:
    """A method and a pattern; half of the weights go."""

    method: str
    pattern: str
    sparsity: float = 0.5

    def __str__(self) -> str:
        return f"{self.method} {self.pattern}"

    @property
    def recipe(self) -> dict[str, Any]:
        settings = {"block": BLOCK, "damping": DAMPING} if self.method == "sparsegpt" else {}
        return {"method": {"name": self.method, **settings}, "pattern": self.pattern, "sparsity": self.sparsity}


PRUNINGS = [Pruning(method, pattern) for method in ("wanda", "sparsegpt") for pattern in ("2:4", "unstructured")]


class Parity:
    """Where everything lies, and the runs, each made once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.asked = arguments
        self.work: Path = arguments.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = self._in_float32(arguments.model)
        self.set = self._calibration()
        self.peer: Path = arguments.peer_python or make_peer(self.work / "llm-compressor")

    def _in_float32(self, model: Path) -> Path:
        """A copy of the model whose numbers are the stored ones, as float32: no program rounds what it saves."""
        folder = self.work / "model"
        if not (folder / "config.json").exists():
            shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
            tensors: dict[str, torch.Tensor] = {}
            for file in sorted(model.glob("*.safetensors")):
                tensors |= {name: tensor.float() for name, tensor in load_file(file).items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((model / "config.json").read_text())
            config.pop("torch_dtype", None)
            (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=1))
        return folder

    def _calibration(self) -> Path:
        """The calibration set's folder; beside it ``exported`` is the same for ``datasets.load_from_disk``."""
        folder, exported = self.work / "set", self.work / "exported"
        if not folder.exists():
            asked = {"source": str(self.asked.calibration), "samples": self.asked.samples, "length": self.asked.length}
            generate(Recipe.model_validate({"model": str(self.model), "seed": 0, "calibration": asked}), folder)
        if not exported.exists():
            export_set(folder, exported, "hf")
        return folder

    def ids(self) -> list[list[int]]:
        return [list(sample.token_ids) for sample in load_set(self.set).samples]

    def theirs(self, pruning: Pruning, backwards: bool = False) -> Path:
        """The file of llm-compressor's pruned weights."""
        out = self.place(pruning, BACKWARDS if backwards else THEIRS)
        if not (out / RESULT).exists():
            out.mkdir(parents=True, exist_ok=True)
            request = FolderRequest(
                str(self.model), str(self.work / "exported"), str(out), pruning.method, pruning.pattern, pruning.sparsity,
                BLOCK, DAMPING, backwards,
            )  # fmt: skip
            request.write(out / "request.json")
            with (out / "log").open("w") as log:
                command = [self.peer, HERE / "peers" / "llmcompressor_folder.py", out / "request.json"]
                done = subprocess.run(command, stdout=log, stderr=log, cwd=out)
            if done.returncode:
                raise SystemExit(f"llm-compressor ended with exit status {done.returncode}; see {out / 'log'}.")
        shown = json.loads((out / IDS).read_text())
        expected = self.ids()[::-1] if backwards else self.ids()
        if shown[: len(expected)] != expected or any(ids not in expected for ids in shown):
            raise SystemExit(f"llm-compressor was shown other token ids than those of the set; see {out / IDS}.")
        return out / WEIGHTS

    def ours(self, pruning: Pruning, label: str = OURS) -> Path:
        """The file of Secateur's pruned model."""
        out = self.place(pruning, label)
        recipe = {
            "model": str(self.model),
            "dtype": "float32",
            "calibration": {"source": str(self.set)},
            "pruning": pruning.recipe | DIFFERENT[label],
            "evaluation": {"enabled": False},
        }
        if not (out / "manifest.json").exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            prune(Recipe.model_validate(recipe), out, self.work / "store")
        return out / "model.safetensors"

    def place(self, pruning: Pruning, label: str) -> Path:
        return (
            self.work / str(pruning).replace(":", "of").replace(" ", "-") / label.replace(", ", "-").replace(" ", "-")
        )

    def perplexity(self, pruning: Pruning | None = None, label: str = "") -> float:
        """By ``secateur evaluate``, of the dense model or of a pruned one, whoever pruned it."""
        folder = self.model
        if pruning is not None:
            folder = self.place(pruning, label)
            if label == THEIRS:
                folder = self._as_model(folder)
        measured = {
            "text": str(self.asked.text), "protocol": self.asked.protocol, "limit": self.asked.windows, "fidelity": False,
            "dtype": self.asked.evaluation_dtype,
        }  # fmt: skip
        recipe = Recipe.model_validate({"model": str(folder), "evaluation": measured})
        return evaluate(recipe, store=self.work / "store").scores["perplexity"]["value"]

    def _as_model(self, folder: Path) -> Path:
        """The model's folder with the pruned weights in it."""
        place = folder / "model"
        if not (place / "config.json").exists():
            place.mkdir(exist_ok=True)
            tensors = load_file(self.model / "model.safetensors") | load_file(folder / WEIGHTS)
            save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
            others = [path for path in self.model.iterdir() if path.suffix != ".safetensors"]
            for path in sorted(others, key=lambda path: path.name == "config.json"):
                shutil.copy(path, place)
        return place


def compared(parity: Parity, pruning: Pruning, one: str, other: str) -> Iterator[Row]:
    """The rows of two whole runs."""
    files = [
        parity.theirs(pruning, label == BACKWARDS) if label in (THEIRS, BACKWARDS) else parity.ours(pruning, label)
        for label in (one, other)
    ]
    with safe_open(files[0], "pt") as first, safe_open(files[1], "pt") as second:
        for name in names_in(parity.theirs(pruning)):
            weights = first.get_tensor(name), second.get_tensor(name)
            yield compare(pruning.method, pruning.pattern, one, other, name, weights)


def names_in(file: Path) -> list[str]:
    """The linears of a file of weights, block by block."""
    with safe_open(file, "pt") as stored:
        return sorted(stored.keys(), key=lambda name: (int(name.split(".")[2]), name))


def replayed(parity: Parity, pruning: Pruning) -> list[Row]:
    """The rows of Secateur's methods on llm-compressor's inputs."""
    made = parity.place(pruning, REPLAYED).with_suffix(".csv")
    if made.exists():
        return report.read_rows(made)
    settings = {"block": BLOCK, "damping": DAMPING} if pruning.method == "sparsegpt" else {}
    make = METHODS.load(pruning.method)
    methods = {REPLAYED: make(**settings)}
    if pruning.method == "sparsegpt" and pruning.pattern == "unstructured":
        methods[INCLUSIVE] = make(**settings, inclusive_threshold=True)
    found: dict[str, list[Row]] = {label: [] for label in methods}
    theirs = parity.theirs(pruning)
    group = int(pruning.pattern.partition(":")[2] or 0)
    steps = replay(parity.model, theirs, parity.ids(), methods, pruning.pattern, pruning.sparsity)
    for name, their, ours, scores in steps:
        for label, weight in ours.items():
            row = compare(pruning.method, pruning.pattern, label, THEIRS, name, (weight, their))
            if scores is not None:
                row = replace(row, gap=score_gap(scores, (weight, their), group))
            found[label].append(row)
    rows = [row for label in methods for row in found[label]]
    report.write_rows(made, rows)
    return rows


def measure(parity: Parity, pruning: Pruning, rows: Path, perplexities: dict[str, Any], without: list[str]) -> None:
    """Add what ``pruning`` gives to the file of ``rows`` and to ``perplexities``, except what they have already."""
    known = report.read_rows(rows) if rows.exists() else []
    pairs = [(OURS, THEIRS), (REPLAYED, THEIRS), (SINGLY, OURS), (BACKWARDS, THEIRS), (LINEAR, THEIRS), (DENSE, THEIRS)]
    for one, other in pairs:
        if one in without or any(
            (row.method, row.pattern, row.one) == (pruning.method, pruning.pattern, one) for row in known
        ):
            continue
        started = time.process_time()
        known += replayed(parity, pruning) if one == REPLAYED else compared(parity, pruning, one, other)
        report.write_rows(rows, known)
        print(
            f"{pruning}: {one} beside {other}, {time.process_time() - started:.0f} CPU s", file=sys.stderr, flush=True
        )
    if str(pruning) not in perplexities:
        perplexities[str(pruning)] = {label: parity.perplexity(pruning, label) for label in (OURS, THEIRS)}


def facts(parity: Parity) -> dict[str, Any]:
    asked = parity.asked
    ids = parity.ids()
    peers = {
        str(pruning): json.loads((parity.place(pruning, THEIRS) / RESULT).read_text())
        for pruning in PRUNINGS
        if (parity.place(pruning, THEIRS) / RESULT).exists()
    }
    return {
        "set": {
            "digest": json.loads((parity.set / "manifest.json").read_text())["set_digest"],
            "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
            "samples": len(ids),
            "tokens": sum(map(len, ids)),
        },
        "model_sha256": hashlib.sha256((Path(asked.model) / "model.safetensors").read_bytes()).hexdigest(),
        "evaluation": {
            "text": Path(asked.text).name,
            "protocol": asked.protocol,
            "windows": asked.windows,
            "dtype": asked.evaluation_dtype,
        },
        "damping": DAMPING,
        "block": BLOCK,
        "llm-compressor": peers,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": {"processor": processor(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--protocol", default="concat-512")
    parser.add_argument("--windows", type=int, default=24, help="of the evaluation, evenly spread")
    parser.add_argument("--evaluation-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", nargs="+", choices=[str(pruning) for pruning in PRUNINGS])
    parser.add_argument("--without", nargs="+", choices=CONTROLS, default=[])
    parser.add_argument("--peer-python", type=Path, help=f"Python of a virtual environment that has {THEIRS}")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "parity", help="folder for all files")
    return parser.parse_args()


def main() -> None:
    asked = parse()
    parity = Parity(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    rows, results = asked.out / report.ROWS, asked.out / report.RESULTS
    found = json.loads(results.read_text()) if results.exists() else {}
    perplexities = found.get("perplexity", {})
    for pruning in PRUNINGS:
        if asked.only and str(pruning) not in asked.only:
            continue
        measure(parity, pruning, rows, perplexities, asked.without)
        if "dense" not in perplexities:
            perplexities["dense"] = parity.perplexity()
        results.write_text(json.dumps(facts(parity) | {"perplexity": perplexities}, indent=1) + "\n")
    print(report.tables(asked.out))


if __name__ == "__main__":
    main()
