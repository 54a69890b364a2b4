"""Two processes on gloo, launched by torchrun as a user would: the real command line, and the collectives themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import CONFIGS, SLOWLY, save_model, wait_for_a_line
from secateur.cli.main import main
from secateur.errors import UsageError
from secateur.models import loading
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import pick_device
from secateur.pipeline.store import read_manifest
from secateur.pruning.workers import Workers

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LIMIT = 150  # seconds; a hang is a failure
SMALL = ["--set", "calibration.samples=10", "--set", "calibration.length=24", "--set", "pruning.batch_size=2"]
SMALL += ["--set", "evaluation.enabled=false", "--device", "cpu"]
LINEAR = ["--set", "pruning.propagation=linear", "--set", "pruning.activation_gib=1e-6"]


def launch(program: Sequence[object], logs: Path, **environment: str) -> subprocess.Popen[str]:
    """Start ``program`` (what follows ``python``) in two processes; what each prints goes to a file of its own."""
    command = [sys.executable, *TORCHRUN, "--redirects", "3", "--log-dir", str(logs), *map(str, program)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings)


def finish(process: subprocess.Popen[str]) -> int:
    try:
        process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its children with it
        process.communicate(timeout=30)
        pytest.fail("the processes hang")
    return process.returncode


def printed(logs: Path, rank: int) -> tuple[str, str]:
    """Stdout and stderr of one process; torch's own warnings about the machine aside."""
    out, err = (next(logs.glob(f"*/attempt_0/{rank}/{stream}.log")).read_text() for stream in ("stdout", "stderr"))
    return out, "".join(line for line in err.splitlines(keepends=True) if not line.startswith(("[W", "[rank")))


def arguments(model: Path, text: Path, out: Path, *more: object) -> list[str]:
    return list(
        map(str, ["prune", model, "--calibration", text, "--out", out, "--store", out.parent / "store", *SMALL, *more])
    )


def one_process(*given: object) -> Checkpoint:
    assert main(arguments(*given)) == 0
    return Checkpoint(Path(str(given[2])))


def compare(one: Checkpoint, other: Checkpoint, method: str) -> None:
    assert one.names == other.names
    for name in one.names:
        ours, theirs = one.read(name), other.read(name)
        if method == "sparsegpt":
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("wanda", [*LINEAR, "--sparsity", "0.6", "--set", "pruning.allocation=owl", "--set", "pruning.head=true"]),
        ("sparsegpt", ["--pattern", "2:4"]),
    ],
)
def test_two_processes_make_what_one_makes(llama, text_file, tmp_path, method, more):
    out = tmp_path / "two" / "out"
    given = arguments(llama, text_file, out, "--method", method, *more)
    assert finish(launch(["-m", "secateur", *given], tmp_path / "logs")) == 0
    first, second = printed(tmp_path / "logs", 0), printed(tmp_path / "logs", 1)
    assert f"pruned model   {out}" in first[0]
    assert "blocks:" in first[1]
    assert second == ("", "")
    assert not list(out.parent.glob(".*"))
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["processes"] == 2
    assert manifest["files"].keys() == {path.name for path in out.iterdir()} - {"manifest.json", "README.md"}
    compare(one_process(llama, text_file, tmp_path / "one" / "out", "--method", method, *more), Checkpoint(out), method)


def test_both_killed_the_same_command_goes_on(llama, text_file, tmp_path):
    out, slowly = tmp_path / "two" / "out", tmp_path / "slowly.py"
    slowly.write_text(SLOWLY)
    given = arguments(llama, text_file, out, "--sparsity", "0.6", "--set", "pruning.activation_gib=1e-6")
    process = launch([slowly, *given], tmp_path / "logs")
    wait_for_a_line(process, out.parent, ".*.partial/pruning.jsonl")
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    assert finish(process) != 0
    assert not out.exists()
    assert len(list(out.parent.glob(".*.partial/.hidden-*"))) == 2  # kill -9 leaves them lying
    assert finish(launch(["-m", "secateur", *given], tmp_path / "again")) == 0
    manifest = read_manifest(out)
    assert manifest is not None
    assert not any(name.startswith(".") for name in [*manifest["files"], *(path.name for path in out.iterdir())])
    blocks = [json.loads(line)["block"] for line in (out / "pruning.jsonl").read_text().splitlines()]
    assert blocks == [0, 1]
    compare(one_process(llama, text_file, tmp_path / "one" / "out", "--sparsity", "0.6"), Checkpoint(out), "wanda")


def children(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.parametrize("damage", ["weights", "one process"])
def test_an_error_ends_both_with_one_sentence(llama, text_file, tmp_path, damage):
    """NaN weights stop both at once; an error of the second process alone stops the first, which waits for it."""
    model, program = llama, ["-m", "secateur"]
    if damage == "weights":
        model = save_model(CONFIGS["llama"](), tmp_path / "damaged")
        checkpoint = Checkpoint(model)
        name = "model.layers.1.mlp.up_proj.weight"
        checkpoint.patch({name: torch.full_like(checkpoint.read(name), float("nan"))})
        sentence = "The stored weights of model.layers.1.mlp.up_proj (block 1) are not finite"
    else:
        (tmp_path / "failing.py").write_text(FAILING)
        program = [str(tmp_path / "failing.py")]
        sentence = "model.layers.1.mlp.up_proj: only here"
    given = arguments(model, text_file, tmp_path / "two" / "out", "--set", "pruning.propagation=linear")
    started = time.monotonic()
    assert finish(launch([*program, *given], tmp_path / "logs")) != 0
    assert time.monotonic() - started < LIMIT
    told = [printed(tmp_path / "logs", rank) for rank in (0, 1)]
    assert sum(err.count("error: ") for _, err in told) == 1
    assert sum(err.count(sentence) for _, err in told) == 1
    assert not any("Traceback" in err for _, err in told)
    assert not (tmp_path / "two" / "out").exists()


FAILING = """
import os, sys
from secateur.cli.main import main
from secateur.errors import NumericsError
from secateur.pruning import lockstep
new = lockstep.new_statistics
def failing(linear, kinds, device):
    if os.environ["RANK"] == "1" and linear.name == "model.layers.1.self_attn.q_proj":
        raise NumericsError("model.layers.1.mlp.up_proj: only here")
    return new(linear, kinds, device)
lockstep.new_statistics = failing
sys.exit(main(sys.argv[1:]))
"""


COLLECTIVES = """
import sys
import torch
from secateur.errors import NumericsError, SecateurError, UsageError
from secateur.pruning.workers import Workers
from secateur.statistics import ColumnNorms, Gram, InputStatistics, Moments

workers = Workers.start("cpu")
torch.manual_seed(0)
rows = torch.randn(1000, 700) @ torch.randn(700, 700)
for dtype in (torch.float32, torch.bfloat16):
    typed = rows.to(dtype)
    whole = InputStatistics([Gram(700), ColumnNorms(700), Moments(700)])
    part = InputStatistics([Gram(700), ColumnNorms(700), Moments(700)])
    whole.update(typed)
    for portion in workers.portion(typed.split(90)):
        part.update(portion)
    assert part.tokens not in (0, 1000)
    workers.reduce([part, part])  # the same object twice is counted once
    gram, expected = part[Gram].matrix, whole[Gram].matrix
    assert (gram - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(gram, gram.T)
    assert torch.allclose(part[ColumnNorms].squares, whole[ColumnNorms].squares, rtol=1e-6)
    assert torch.allclose(part[Moments].variance(), whole[Moments].variance(), rtol=1e-4)
    assert [statistic.tokens for statistic in part] == [1000, 1000, 1000]
made = [workers.once(lambda: (workers.rank, torch.ones(3) * workers.rank), number) for number in range(3)]
assert [rank for rank, _ in made] == [0, 1, 0]
assert torch.equal(made[1][1], torch.ones(3))

def fail():
    raise NumericsError(f"of process {workers.rank}")

for number in (0, 1):
    try:
        workers.once(fail, number)
    except NumericsError as error:
        assert str(error) == f"of process {number}"
    else:
        raise AssertionError
try:
    workers.portion([1])
except UsageError as error:
    assert "2 processes cannot share 1 calibration batches" in str(error)
workers.meet()
assert sum(workers.once(workers.first_to_fail, number) for number in (0, 1)) == 1
if workers.rank:
    Workers.stop()
    sys.exit()
try:
    workers.meet()  # the other is gone
except SecateurError as error:
    assert "ended before its time" in str(error)
else:
    raise AssertionError
"""


def test_the_collectives(tmp_path):
    (tmp_path / "script.py").write_text(COLLECTIVES)
    code = finish(launch([tmp_path / "script.py"], tmp_path / "logs"))
    assert code == 0, [printed(tmp_path / "logs", rank) for rank in (0, 1)]


# Without other processes.


def test_one_process_needs_no_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    workers = Workers.start("cpu")
    assert workers == Workers(0, 1)
    workers.meet()
    workers.reduce([])
    assert workers.portion([1, 2, 3]) == [1, 2, 3]
    assert workers.once(lambda: 7) == 7
    assert not torch.distributed.is_initialized()
    Workers.stop()


def test_portions_are_disjoint_and_cover_everything():
    portions = [Workers(rank, 3).portion(range(10)) for rank in range(3)]
    assert sorted(item for portion in portions for item in portion) == list(range(10))
    assert max(map(len, portions)) - min(map(len, portions)) <= 1
    with pytest.raises(UsageError, match="3 processes cannot share 2"):
        Workers(0, 3).portion([1, 2])


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ("auto", {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "cuda:3"),
        ("cuda", {"WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "cuda:0"),
        ("cuda:1", {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "cuda:1"),
        ("cpu", {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "cpu"),
        ("auto", {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "cuda"),
        ("auto", {}, "cuda"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, asked, environment, expected):
    """PyTorch is made to believe that there are GPUs."""
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.torch, "empty", lambda *_, **__: None)
    assert pick_device(asked) == expected
