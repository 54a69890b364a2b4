"""Parts of a study by themselves: what is kept of masks, how labels are written, how many workers there is room for."""

from __future__ import annotations

import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import masks_of, prune_folder
from secateur.masks.agreement import agreement, jaccard, shared_counts
from secateur.models.checkpoint import Checkpoint
from secateur.pruning.forecast import Forecast
from secateur.studies import machine, workers
from secateur.studies.mask_sample import overlap, positions, sample_masks
from secateur.studies.price import pass_seconds
from secateur.studies.schema import label_of


def exact(one: dict, other: dict) -> tuple[float, float]:
    """Overlap of whole masks, linears weighed by size."""
    total = sum(mask.numel() for mask in one.values())
    found = np.zeros(2)
    for name, mask in one.items():
        shared = shared_counts([mask, other[name]])
        found += mask.numel() * np.array([float(jaccard(shared)[0, 1]), float(agreement(shared, mask.numel())[0, 1])])
    return tuple(found / total)


def test_small_models_are_kept_whole_so_their_overlap_is_exact(llama, tmp_path):
    data = torch.randint(3, 300, (6, 24), generator=torch.Generator().manual_seed(1)).tolist()
    records, _ = prune_folder(llama, tmp_path / "one", pattern="unstructured")
    others, _ = prune_folder(llama, tmp_path / "other", pattern="unstructured", data=data)
    found = overlap(sample_masks(tmp_path / "one", records), sample_masks(tmp_path / "other", others))
    expected = exact(masks_of(tmp_path / "one", records), masks_of(tmp_path / "other", others))
    assert found[:2] == pytest.approx(expected)
    assert 0.33 < found[0] < 1


def test_inputs_that_were_reordered_are_put_back(llama, tmp_path):
    name = "model.layers.0.mlp.down_proj"
    mask = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))

    def sampled(folder, weight, order):
        Checkpoint(llama).copy_to(folder).patch({f"{name}.weight": weight.float().contiguous()})
        return sample_masks(folder, [types.SimpleNamespace(name=name, weights=2048, order=order, transposed=False)])

    plain, moved = sampled(tmp_path / "plain", mask, []), sampled(tmp_path / "moved", mask[:, order], order.tolist())
    assert overlap(plain, moved)[:2] == (1.0, 1.0)
    assert overlap(plain, sampled(tmp_path / "other", mask[:, order], []))[0] < 1


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_of_large_models_the_sampled_overlap_is_within_one_per_cent(sparsity):
    random = np.random.default_rng(0)
    errors = []
    for trial in range(20):
        looked = positions(f"linear {trial}", 2_000_000, 65536)
        assert len(set(looked.tolist())) == 65536
        one = random.random(2_000_000) < sparsity
        other = np.where(random.random(2_000_000) < 0.7, one, random.random(2_000_000) < sparsity)
        whole = (one & other).sum() / (one | other).sum()
        errors.append(abs((one & other)[looked].sum() / (one | other)[looked].sum() - whole))
    assert np.quantile(errors, 0.9) < 0.01


def test_samples_of_other_linears_are_not_compared():
    entry = {"bits": "AAAA", "positions": 24, "weights": 24}
    assert overlap({"a": entry}, {"b": entry}) is None
    assert overlap({"a": entry}, {"a": entry | {"positions": 16}}) is None
    assert overlap({"a": entry}, {"a": entry})[:2] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.5, "0.5"),
        (16, "16"),
        (True, "true"),
        (None, "null"),
        ("2:4", "2:4"),
        ({"name": "sparsegpt", "damping": 0.1}, "sparsegpt damping 0.1"),
        ([{"name": "length"}, "duplicates"], "length+duplicates"),
        ([], "none"),
    ],
)
def test_a_value_as_a_label(value, label):
    assert label_of(value) == label


@pytest.mark.parametrize(
    ("gib", "device", "tasks", "expected"),
    [(100, "cpu", 99, 4), (3, "cpu", 99, 2), (0.1, "cpu", 99, 1), (100, "cpu", 3, 3)],
)
def test_workers_fit_the_cores_the_memory_and_the_tasks(monkeypatch, gib, device, tasks, expected):
    monkeypatch.setattr(workers, "cores", lambda: 4)
    monkeypatch.setattr(workers, "free_memory", lambda: gib * 2**30)
    monkeypatch.setattr(workers, "heaviest", lambda plan: 2**30)
    recipe = types.SimpleNamespace(device=device)
    plan = types.SimpleNamespace(works={"a": types.SimpleNamespace(cell=types.SimpleNamespace(recipe=recipe))})
    assert workers.default_workers(plan, tasks) == expected


ORPHAN = """
import os, sys, time
from pathlib import Path
from secateur.studies.pool import ProcessPool

def work(task, store, tell):
    (store / "partial").write_text(str(os.getpid()))
    (store / "partial").rename(store / "pid")
    time.sleep(300)

if __name__ == "__main__":
    pool = ProcessPool(1, 1, Path(sys.argv[1]), print, work)
    pool.start("a task")
    pool.wait()
"""


def runs(process: int) -> bool:
    """A process that has ended counts as gone, even if nobody has asked for its exit code yet."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_workers_end_with_the_process_that_hands_out_the_work(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    while runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("asked", "count", "threads"), [("", 1, 8), ("", 3, 2), ("2", 1, 2), ("4", 4, 2), ("1,2", 1, 1), ("", 20, 1)]
)
def test_workers_share_the_cores_and_take_no_more_threads_than_asked(monkeypatch, asked, count, threads):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert machine.threads_for(count) == threads


def test_what_cells_of_one_pass_share_is_counted_once():
    wanda = Forecast({}, {"starting": 5.0, "forward": 10.0, "statistics": 1.0, "solve": 2.0, "saving": 0.5})
    sparsegpt = Forecast({}, {"starting": 5.0, "forward": 10.0, "statistics": 4.0, "solve": 7.0, "saving": 0.5})
    assert pass_seconds([wanda]) == pytest.approx(13.5)
    assert pass_seconds([wanda, sparsegpt, wanda]) == pytest.approx(14 + 2.5 + 7.5 + 2.5)
    assert pass_seconds([]) == 0
