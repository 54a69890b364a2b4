"""The forecast of peak memory and time against the real run, for several shapes, methods, types and propagations.

    OMP_NUM_THREADS=1 python benchmarks/forecast.py --folder SCRATCH [--part tuned|held-out|all] [--only hidden-1024]

Writes a small Llama of each shape with random weights, then, each in a process of its own, foretells a pruning and does
it (copy, prune, verify), and prints both and their ratio (forecast / found; 1 is right). The constants of
pruning/forecast.py and the methods' own costs were found on the part ``tuned``; ``held-out`` is what they are judged by.
On one thread, seconds are those of the processor, which other work on the machine disturbs least; waiting for the disk is
then left out on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

SHAPES = {
    256: (704, 6),
    576: (1536, 6),
    1024: (2816, 3),
    2048: (5632, 2),
}  # intermediate width and blocks by hidden width
VOCABULARY, SAMPLES, LENGTH, BATCH = 4096, 8, 512, 4

Propagation = Literal["block", "linear"]
PROPAGATIONS: tuple[Propagation, ...] = get_args(Propagation)


@dataclass(frozen=True)
class Case:
    """One pruning. ``held_out``: not looked at while the constants were found."""

    hidden: int
    dtype: str
    method: str
    propagation: Propagation

    @property
    def held_out(self) -> bool:
        return self.hidden in (576, 2048)

    def __str__(self) -> str:
        return f"hidden-{self.hidden} {self.dtype} {self.method} {self.propagation}"


def cases() -> Iterator[Case]:
    for hidden in SHAPES:
        for dtype in ("float32", "bfloat16"):
            for method in ("wanda", "sparsegpt"):
                for propagation in PROPAGATIONS:
                    yield Case(hidden, dtype, method, propagation)


def write_model(folder: Path, hidden: int, dtype: str) -> None:
    """A Llama of random weights, saved in ``dtype``."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    intermediate, blocks = SHAPES[hidden]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64 // (3 if hidden == 576 else 2),
        head_dim=64,
    )
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)


def prepared(case: Case, model: Path) -> dict[str, Any]:
    """The plan of a case and what else both the forecast and the run need."""
    from secateur.allocation.uniform import Uniform
    from secateur.masks import parse_pattern
    from secateur.methods import METHODS
    from secateur.models.loading import quiet_transformers
    from secateur.models.skeleton import Skeleton
    from secateur.pruning.plan import plan_pruning

    quiet_transformers()
    skeleton, pattern = Skeleton(model), parse_pattern("unstructured")
    plan = plan_pruning(skeleton, METHODS.load(case.method)(), pattern, 0.5, Uniform())
    return {"skeleton": skeleton, "plan": plan}


def foretell(case: Case, model: Path, place: Path) -> dict[str, Any]:
    from secateur.pruning.forecast import forecast

    with_plan = prepared(case, model)
    started = time.perf_counter()
    found = forecast(**with_plan, propagation=case.propagation, lengths=[LENGTH] * SAMPLES, batch_size=BATCH,
                     budget_bytes=None, place=place)  # fmt: skip
    return {
        "peak": found.peak_bytes, "seconds": found.seconds, "memory": found.memory, "time": found.time,
        "saving": found.time.get("saving", 0.0), "measuring": time.perf_counter() - started,
    }  # fmt: skip


def run(case: Case, model: Path, place: Path) -> dict[str, Any]:
    import torch

    from secateur.journal import Journal
    from secateur.models.batches import make_batches
    from secateur.pipeline.provenance import Phases, peak_memory
    from secateur.pruning.loop import Job, Setting, prune_blocks
    from secateur.pruning.records import BlockJournal
    from secateur.pruning.verify import verify

    with_plan = prepared(case, model)
    skeleton, plan = with_plan["skeleton"], with_plan["plan"]
    tokens = torch.randint(3, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    phases, started, clock = Phases(), time.perf_counter(), time.process_time()
    with phases.phase("copy"):
        output = skeleton.stored.copy_to(place / "out")
    with phases.phase("prune"):
        job = Job(plan, output, BlockJournal(Journal(place / "journal")))
        prune_blocks(skeleton, [job], make_batches(tokens, BATCH), Setting(case.propagation))
        peak = peak_memory()
    with phases.phase("verify"):
        verify(model, place / "out", job.journal.records(), plan.pattern, plan.sparsities)
    return {
        "peak": peak,
        "wall": time.perf_counter() - started,
        "processor": time.process_time() - clock,
        "phases": phases.found,
        "solved": sum(record.seconds for record in job.journal.records()),
    }


def in_own_process(what: str, case: Case, model: Path, place: Path) -> dict[str, Any]:
    arguments = [sys.executable, __file__, "--folder", str(place), "--child", what, "--model", str(model)]
    done = subprocess.run(
        [*arguments, "--case", json.dumps(asdict(case))], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def compare(chosen: list[Case], folder: Path, verbose: bool) -> None:
    ratios: list[tuple[float, float]] = []
    print(f"{'':40} {'peak MiB: forecast, found, ratio':>34} {'seconds: forecast, found, ratio':>34}", flush=True)
    for case in chosen:
        model = folder / f"{case.hidden}-{case.dtype}"
        if not model.exists():
            write_model(model, case.hidden, case.dtype)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            expected = in_own_process("foretell", case, model, Path(scratch))
            found = in_own_process("run", case, model, Path(scratch))
        alone = os.environ.get("OMP_NUM_THREADS") == "1"
        found["seconds"] = found["processor" if alone else "wall"]
        expected["seconds"] -= expected["saving"] if alone else 0.0
        ratio = expected["peak"] / found["peak"], expected["seconds"] / found["seconds"]
        ratios.append(ratio)
        memory = f"{expected['peak'] / 2**20:12,.0f} {found['peak'] / 2**20:12,.0f} {ratio[0]:8.2f}"
        print(f"{case!s:40} {memory} {expected['seconds']:14.2f} {found['seconds']:10.2f} {ratio[1]:8.2f}", flush=True)
        if verbose:
            print("   ", {name: round(part, 2) for name, part in expected["time"].items()})
            print("   ", {name: part >> 20 for name, part in expected["memory"].items()})
            print("    found", found["phases"], round(found["solved"], 2), "measuring", round(expected["measuring"], 2))
    for number, what in enumerate(("peak", "seconds")):
        good = sum(0.75 <= ratio[number] <= 1.25 for ratio in ratios)
        span = f"{min(ratio[number] for ratio in ratios):.2f} to {max(ratio[number] for ratio in ratios):.2f}"
        print(f"{what}: {good} of {len(ratios)} within 25 %, ratios {span}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for models and outputs; the models stay")
    parser.add_argument("--part", choices=("tuned", "held-out", "all"), default="all")
    parser.add_argument("--only", default=[""], nargs="*", help="cases whose name contains one of these")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        does = {"foretell": foretell, "run": run}[arguments.child]
        print(json.dumps(does(Case(**json.loads(arguments.case)), arguments.model, arguments.folder)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asked = [case for case in cases() if arguments.part in ("all", "held-out" if case.held_out else "tuned")]
    compare(
        [case for case in asked if any(part in str(case) for part in arguments.only)],
        arguments.folder,
        arguments.verbose,
    )
    shutil.rmtree(arguments.folder / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
