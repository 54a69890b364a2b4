"""What docs/use-elsewhere.md shows runs: commands parse, and the other tools' blocks do what they say, where the tools are.

SECATEUR_TEST_LLMCOMPRESSOR_PYTHON and SECATEUR_TEST_QUANTISER_PYTHON name interpreters that have llm-compressor and AutoRound.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from conftest import CONFIGS, save_model
from secateur import export_set, import_set
from secateur.cli.main import app

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "use-elsewhere.md").read_text()

TOOLS = {
    "llm-compressor": ("SECATEUR_TEST_LLMCOMPRESSOR_PYTHON", "weight_packed"),
    "AutoRound": ("SECATEUR_TEST_QUANTISER_PYTHON", "qweight"),
}

BEFORE = """
import json, sys, torch
MODEL, SET = {model!r}, {exported!r}
shown, look_up = set(), torch.nn.functional.embedding
def noted(input, *others, **named):
    if input.ndim == 2 and input.device.type != "meta":
        shown.update(map(tuple, input.tolist()))
    return look_up(input, *others, **named)
torch.nn.functional.embedding = noted
"""
AFTER = """
open("shown.json", "w").write(json.dumps(sorted(shown)))
"""
"""Around a block: what it is given, and a note of every sequence that went through the model."""


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    "command", [line for block in blocks(PAGE, "sh") for line in block.splitlines() if line.startswith("secateur ")]
)
def test_commands_parse(command):
    words = shlex.split(command, comments=True)[1:]
    function, *_ = app.parse_args(words, print_error=False, exit_on_error=False)
    assert function.__name__.rstrip("_") == words[0]


def test_every_block_is_run_by_a_test():
    titles = [*TOOLS, "From elsewhere"]
    assert len(blocks(PAGE, "python")) == len(titles)
    assert all(len(blocks(section(title), "python")) == 1 for title in titles)


def test_the_block_of_our_own_runs(tmp_path):
    block = blocks(section("From elsewhere"), "python")[0]
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=True)
    samples = (tmp_path / done.stdout.strip() / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["token_ids"] for line in samples] == [[5, 6, 7], [8, 9]]


@pytest.mark.parametrize("tool", list(TOOLS))
def test_another_tool_calibrates_on_the_very_ids(tmp_path, tool):
    """The block as it stands; afterwards the model has seen every sample, and is stored quantised."""
    variable, mark = TOOLS[tool]
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python interpreter that has {tool}")
    config = CONFIGS["llama"]()
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    model = save_model(transformers.LlamaConfig(**config.to_dict()), tmp_path / "model")
    ids = torch.randint(3, config.vocab_size, (6, 24), generator=torch.Generator().manual_seed(1)).tolist()
    calibration = import_set([{"input_ids": row} for row in ids], str(model), tmp_path / "set").folder
    export_set(calibration, tmp_path / "exported", "hf")

    block = blocks(section(tool), "python")[0].replace("iters=200", "iters=2")
    before = BEFORE.format(model=str(model), exported=str(tmp_path / "exported"))
    (tmp_path / "block.py").write_text(before + block + AFTER)
    settings = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "block.py"], cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shown = {tuple(row) for row in json.loads((tmp_path / "shown.json").read_text())}
    assert {tuple(row) for row in ids} <= shown
    names = []
    for file in (tmp_path / "model-w4a16").rglob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            names += list(stored.keys())
    assert sum(name.endswith(mark) for name in names) == 14  # every linear of both blocks
