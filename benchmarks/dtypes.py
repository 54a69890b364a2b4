"""What it costs to compute in the type that a model is stored in, on this processor: bf16 beside float32.

    OMP_NUM_THREADS=1 python benchmarks/dtypes.py [--repeats 3] [--out FILE]

Writes 16 texts of 128 tokens with the bundled model, prunes it with Wanda and with SparseGPT (2:4, 16 x 512 tokens), and scores 8 windows of
512, in either type, taking turns; a ratio is taken within a repeat. CPU seconds of all threads, of the work alone: models are loaded and
sets made before. What ``auto`` settles on here is printed first.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import shown, spread

from secateur.generation.engine import Sampling
from secateur.generation.transformers_engine import TransformersEngine
from secateur.models.loading import load_model, quiet_transformers, settled_dtype
from secateur.pipeline.calibrate import load_set, plan_calibration
from secateur.pipeline.components import resolve_model
from secateur.pipeline.prune import plan_prune
from secateur.pipeline.pruning_run import run_together
from secateur.pipeline.recipe_file import load_recipe
from secateur.pipeline.reporter import Reporter

TYPES = ("bfloat16", "float32")
PROMPTS, WRITTEN, WINDOWS = 16, 128, 8


def prunes(dtype: str, method: str, data: Path, place: Path) -> float:
    settings = [f"dtype={dtype}", f"pruning.method={method}", "pruning.pattern=2:4", "evaluation.enabled=false"]
    stage = plan_prune(load_recipe(None, settings, {"model": "reference"}), resolve_model("reference"))
    before = time.process_time()
    run_together([stage], [place / f"{method}-{dtype}-{before}"], [data], Reporter())
    return time.process_time() - before


def writes(engine: TransformersEngine, prompts: list[list[int]], seed: int) -> float:
    before = time.process_time()
    engine.generate(prompts, WRITTEN, Sampling(), seed)
    return time.process_time() - before


def scores(engine: TransformersEngine, windows: list[list[int]]) -> float:
    before = time.process_time()
    engine.score(windows)
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    quiet_transformers()
    processor = f"{torch.cpu.get_capabilities().get('cpu_name') or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    print(f"auto is {settled_dtype('auto', 'cpu')} here ({processor})")
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = ["calibration.source=prose", "calibration.samples=16", "calibration.length=512"]
        stage = plan_calibration(load_recipe(None, settings, {"model": "reference"}))
        data = stage.run(place / "set", Reporter())
        windows = [list(sample.token_ids) for sample in load_set(data).samples[:WINDOWS]]
        engines = {
            dtype: TransformersEngine(load_model(stage.model.folder, "cpu", getattr(torch, dtype))) for dtype in TYPES
        }
        for repeat in range(asked.repeats):
            for dtype in TYPES if repeat % 2 == 0 else TYPES[::-1]:
                mine: dict[str, Any] = found.setdefault(dtype, {})
                prompts = [row[:3] for row in windows] * (PROMPTS // WINDOWS)
                mine.setdefault("writing", []).append(writes(engines[dtype], prompts, repeat))
                mine.setdefault("scoring", []).append(scores(engines[dtype], windows))
                for method in ("wanda", "sparsegpt"):
                    mine.setdefault(method, []).append(prunes(dtype, method, data, place))
    ratios = {
        work: spread([one / other for one, other in zip(found["bfloat16"][work], found["float32"][work], strict=True)])
        for work in found["float32"]
    }
    for work, ratio in ratios.items():
        print(f"{work:10} bf16 takes {shown(ratio)} times the CPU seconds of float32")
    if asked.out:
        told = {"processor": processor, "torch": torch.__version__, "threads": torch.get_num_threads()}
        asked.out.write_text(json.dumps(told | {"seconds": found, "ratios": ratios}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
