"""Peak memory of pruning a model of Llama-3-8B's or Llama-3.2-1B's shape with random weights, on a CPU.

    python benchmarks/memory.py --folder /tmp/llama-8b --shape 8b --method wanda

Writes the model once (16 GB or 2.5 GB, a block at a time, in bf16), asks ``secateur prune --dry-run`` what it expects,
prunes through the command line with 8 x 512 random tokens, and prints seconds and peak resident memory of every phase as
the manifest has them, beside what was expected. The disk must hold the model twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from secateur.models.locate import reference_folder

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128, "tie_word_embeddings": False},
}  # fmt: skip


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """Random weights, one file a block, so that no more than a block and the embeddings are in memory."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=128256,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        dtype=torch.bfloat16,
        **shape,
    )
    config.save_pretrained(folder)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[name] = parameter.shape
    index = {}
    for file, shapes in files.items():
        tensors = {
            name: (torch.randn(shape) * 0.02).bfloat16() if len(shape) == 2 else torch.ones(shape, dtype=torch.bfloat16)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for path in reference_folder().glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="further recipe settings")
    asked = parser.parse_args()
    if not asked.folder.exists():
        write_model(asked.folder, SHAPES[asked.shape])
    settings = ["calibration.samples=8", "calibration.length=512", "evaluation.enabled=false", *asked.more]
    settings += [f"pruning.batch_size={asked.batch}"]
    with tempfile.TemporaryDirectory(dir=asked.folder.parent) as store:
        command = [sys.executable, "-m", "secateur", "prune", str(asked.folder), "--method", asked.method]
        command += ["--pattern", "2:4", "--calibration", "random-tokens", "--store", store, "--json"]
        command += [part for setting in settings for part in ("--set", setting)]
        expected = _json([*command, "--dry-run"])["expected"]
        manifest = _json(command)["manifest"]
    print(f"{asked.method}, {manifest['weights']:,} prunable weights, {manifest['sparsity']:.2%} zeros")
    phases = manifest["phases"]
    for name, phase in phases.items():
        print(f"{name:8} {phase['seconds']:8.1f} s  peak {phase['peak_mib']:8,.0f} MiB")
    seconds, peak = (
        sum(phase["seconds"] for phase in phases.values()),
        max(phase["peak_mib"] for phase in phases.values()),
    )
    print(f"all      {seconds:8.1f} s  peak {peak:8,.0f} MiB")
    foreseen = expected["peak_bytes"] / 2**20
    print(
        f"expected {expected['seconds']:8.1f} s  peak {foreseen:8,.0f} MiB: {expected['seconds'] / seconds:.2f} and {foreseen / peak:.2f} of it"
    )


def _json(command: list[str]) -> dict[str, Any]:
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    main()
