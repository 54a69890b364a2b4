"""The speed benchmark on its tiny shape, without the peer: what it prints, and that its programs do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed.py"
SAMPLES, LENGTH = 4, 64


def run(tmp_path_factory, *arguments: str) -> tuple[str, dict]:
    """What one call of the command prints and writes."""
    work = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, SPEED, "--shape", "tiny", "--no-peer", "--work", work, "--out", work / "out.json"]
    command += ["--samples", str(SAMPLES), "--length", str(LENGTH), "--repeats", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["out.json", "tiny-2-float32"]
    return done.stdout, json.loads((work / "out.json").read_text())


@pytest.fixture(scope="module")
def wanda(tmp_path_factory):
    return run(tmp_path_factory, "--method", "wanda")


def test_it_prints_ratios_and_phases_of_every_program(wanda):
    printed, found = wanda
    assert found["base"] == "textbook"
    assert list(found["tools"]) == ["textbook", "block", "linear", "dense"]
    for name in ("textbook", "secateur block", "secateur linear", "secateur dense"):
        assert len([line for line in printed.splitlines() if line.strip().startswith(name)]) == 4, name
    for tool, runs in found["results"].items():
        row = found["tools"][tool]
        for clock in ("wall", "cpu"):
            expected = found["results"]["textbook"][0][clock] / runs[0][clock]
            assert row[f"{clock}_ratio"]["median"] == pytest.approx(expected)
        assert row["sparsity"] == 0.5
        assert all(row["phases"]["wall"][phase] > 0 for phase in ("forward", "statistics", "solve"))
        for clock in ("wall", "cpu"):
            assert sum(row["phases"][clock].values()) == pytest.approx(row[clock]["median"])
    assert all(found["tools"]["block"]["phases"]["wall"][phase] > 0 for phase in ("load", "save"))


def test_the_floor_is_the_linears_flops_at_the_measured_rate(wanda):
    _, found = wanda
    block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128  # q and o, k and v, gate and up and down
    floor = found["floor"]["wall"]
    assert floor["flops"] == 2 * 2 * block * SAMPLES * LENGTH
    assert floor["forward"] * floor["rate"] == pytest.approx(floor["flops"])
    assert floor["gram"] == 0
    assert found["results"]["block"][0]["product_rows"] == SAMPLES * LENGTH


def test_the_textbook_loop_and_secateur_choose_the_same_wanda_mask(wanda):
    _, found = wanda
    assert found["tools"]["block"]["same_mask_as_textbook"] >= 0.9999
    # What each propagation feeds the linears differs, so a benchmark that mixed them up would show here.
    assert found["tools"]["linear"]["same_mask_as_textbook"] < 0.9999
    assert found["tools"]["dense"]["same_mask_as_textbook"] < 0.9999


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_textbook_loop_and_secateur_choose_nearly_the_same_sparsegpt_mask(tmp_path_factory, pattern):
    arguments = ["--method", "sparsegpt", "--pattern", pattern, "--tools", "textbook", "block"]
    _, found = run(tmp_path_factory, *arguments)
    assert found["tools"]["block"]["same_mask_as_textbook"] >= 0.998  # a wrong sign of the update gives 0.993
    tokens = SAMPLES * LENGTH
    grams = 2 * (3 * (64 * 65 * tokens + 64**3 // 3) + 128 * 129 * tokens + 128**3 // 3)
    floor = found["floor"]["wall"]
    assert floor["gram"] * floor["rate"] == pytest.approx(grams)
