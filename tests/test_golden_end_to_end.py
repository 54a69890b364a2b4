"""The whole loop against the original programs' own run on a tiny Llama."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from secateur.allocation.uniform import Uniform
from secateur.journal import Journal
from secateur.masks import parse_pattern
from secateur.methods.magnitude import Magnitude
from secateur.methods.sparsegpt import SparseGPT
from secateur.methods.wanda import Wanda
from secateur.models.batches import make_batches
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.pruning.loop import Job, prune_blocks
from secateur.pruning.plan import plan_pruning
from secateur.pruning.records import BlockJournal


@pytest.fixture(scope="module")
def golden(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    data = dict(np.load(shared / "golden" / "e2e_tiny_llama.npz"))
    config = json.loads((shared / "golden" / "e2e_tiny_llama.json").read_text())["config"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    weights = {name.removeprefix("dense."): torch.tensor(data[name]) for name in data if name.startswith("dense.")}
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    return folder, data


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("key", "method", "pattern"),
    [
        ("magnitude_u50", Magnitude(inclusive_threshold=True), "unstructured"),
        ("wanda_u50", Wanda(), "unstructured"),
        ("wanda_2_4", Wanda(), "2:4"),
        ("sparsegpt_u50", SparseGPT(inclusive_threshold=True), "unstructured"),
        ("sparsegpt_2_4", SparseGPT(), "2:4"),
    ],
)
def test_masks_weights_and_logits_agree(golden, tmp_path, key, method, pattern, batch):
    folder, data = golden
    skeleton = Skeleton(folder)
    plan = plan_pruning(skeleton, method, parse_pattern(pattern), 0.5, Uniform())
    output = skeleton.stored.copy_to(tmp_path)
    job = Job(plan, output, BlockJournal(Journal(tmp_path / "journal")))
    prune_blocks(skeleton, [job], make_batches(data["tokens"].tolist(), batch))
    found = Checkpoint(tmp_path)
    for name in plan.sparsities:
        weight = found.read(f"{name}.weight").numpy()
        if f"{key}.{name}.weight" in data:  # the whole weight
            expected = data[f"{key}.{name}.weight"]
            assert np.array_equal(weight == 0, expected == 0), name
            np.testing.assert_allclose(weight, expected, rtol=0, atol=2e-5)
        else:
            assert np.array_equal(weight == 0, data[f"{key}_mask.{name}.weight"]), name
    logits = data[f"{key}_logits"]
    with torch.inference_mode():
        ours = load_model(tmp_path)(torch.tensor(data["tokens"][: len(logits)])).logits
    np.testing.assert_allclose(ours.numpy(), logits, rtol=0, atol=1e-4)
