"""Peak memory of pruning a model of Llama-3.2-1B's shape with random weights, on a CPU.

    python benchmarks/memory.py --folder /tmp/llama-1b --method wanda

Writes the model once (2.5 GB, a block at a time, in bf16), prunes it through the command line with 8 x 512 random
tokens, and prints seconds and peak resident memory of every phase, as the manifest has them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from secateur.models.locate import reference_folder


def write_model(folder: Path) -> None:
    """Random weights, one file a block, so that no more than a block and the embeddings are in memory."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
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
    parser.add_argument("--method", default="wanda")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        write_model(arguments.folder)
    with tempfile.TemporaryDirectory(dir=arguments.folder.parent) as store:
        command = [sys.executable, "-m", "secateur", "prune", str(arguments.folder), "--method", arguments.method]
        command += ["--pattern", "2:4", "--calibration", "random-tokens", "--store", store, "--json"]
        command += [
            "--set",
            "calibration.samples=8",
            "--set",
            "calibration.length=512",
            "--set",
            "evaluation.enabled=false",
        ]
        done = subprocess.run(
            [*command, "--set", "pruning.batch_size=2"], check=True, stdout=subprocess.PIPE, text=True
        )
    manifest = json.loads(done.stdout)["manifest"]
    print(f"{arguments.method}, {manifest['weights']:,} prunable weights, {manifest['sparsity']:.2%} zeros")
    for name, phase in manifest["phases"].items():
        print(f"{name:8} {phase['seconds']:8.1f} s  peak {phase['peak_mib']:8,.0f} MiB")


if __name__ == "__main__":
    main()
