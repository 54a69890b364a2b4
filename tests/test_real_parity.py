"""The comparison with another program: its rows and tables, the replay of another program's inputs, and what is published."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from conftest import CONFIGS, save_model
from secateur.methods.sparsegpt import SparseGPT
from secateur.methods.wanda import Wanda

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS, PUBLISHED = ROOT / "benchmarks", ROOT / "docs" / "results" / "smollm2" / "parity"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """The benchmarks import each other as scripts do; what they add to the modules goes again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(params=["wanda 2:4", "sparsegpt 2:4", "sparsegpt unstructured"])
def textbook(request, on_path, tmp_path):
    """A Llama, what it was calibrated on, and the file of weights that the textbook loop, an independent program, pruned."""
    import textbook
    from measuring import TOKENS, Phases, Request

    method, pattern = request.param.split()
    tokens = torch.randint(3, 300, (6, 48), generator=torch.Generator().manual_seed(3))
    save_file({"tokens": tokens}, tmp_path / TOKENS)
    folder = save_model(CONFIGS["llama"](), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    textbook.prune(model, Request(str(folder), str(tmp_path), "", method, pattern, 0.5), Phases())
    weights = {
        f"{name}.weight": module.weight.data
        for name, module in model.named_modules()
        if name.startswith("model.layers.") and isinstance(module, torch.nn.Linear)
    }
    save_file(weights, tmp_path / "weights.safetensors")
    return method, pattern, folder, tmp_path / "weights.safetensors", tokens.tolist()


def test_given_the_same_inputs_both_programs_prune_the_same_weights_in_every_block(textbook):
    from parity_report import compare, equal
    from secateur_replay import replay

    method, pattern, folder, theirs, tokens = textbook
    methods = (
        {"ours": SparseGPT(inclusive_threshold=pattern == "unstructured")}
        if method == "sparsegpt"
        else {"ours": Wanda()}
    )
    rows = []
    for name, their, ours, _ in replay(folder, theirs, tokens, methods, pattern, 0.5):
        rows.append(compare(method, pattern, "ours", "theirs", name, (ours["ours"], their)))
    assert [row.block for row in rows] == [0] * 7 + [1] * 7
    assert equal(rows) >= 0.9999
    assert max(row.difference for row in rows) < 0.02


def test_a_replay_follows_the_other_programs_weights(textbook, tmp_path):
    """Where the other program's first block is another, the second block's inputs are."""
    from safetensors.torch import load_file
    from secateur_replay import replay

    method, pattern, folder, theirs, tokens = textbook
    weights = load_file(theirs)
    for name in weights:
        if name.startswith("model.layers.0."):
            weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, tmp_path / "flipped.safetensors")
    methods = {"ours": SparseGPT() if method == "sparsegpt" else Wanda()}
    both = [
        {name: ours["ours"] != 0 for name, _, ours, _ in replay(folder, file, tokens, methods, pattern, 0.5)}
        for file in (theirs, tmp_path / "flipped.safetensors")
    ]
    for name, mask in both[0].items():
        assert torch.equal(mask, both[1][name]) == name.startswith("model.layers.0."), name


def test_a_row_counts_what_is_zero_in_both_and_in_either():
    from parity_report import compare, equal, jaccard

    one, other = torch.tensor([[0.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 2.0, 0.0, 4.0]])
    row = compare("wanda", "2:4", "a", "b", "model.layers.3.mlp.up_proj.weight", (one, other))
    assert (row.block, row.weights, row.both, row.either, row.differing) == (3, 4, 1, 3, 2)
    assert row.difference == pytest.approx((13 / 20) ** 0.5, rel=1e-3)
    assert (equal([row, row]), jaccard([row])) == (0.5, pytest.approx(1 / 3))


def test_the_gap_is_that_of_scores_that_the_programs_order_otherwise():
    from parity_report import score_gap

    scores = torch.tensor([[1.0, 2.0, 2.1, 4.0, 9.0, 9.0, 9.0, 9.0]])
    one, other = torch.ones(1, 8), torch.ones(1, 8)
    one[0, [0, 1]] = other[0, [0, 2]] = 0
    assert score_gap(scores, (one, other), 4) == pytest.approx(0.1 / 2.1, rel=1e-2)
    assert score_gap(scores, (one, other), 0) == pytest.approx(0.1 / 2.1, rel=1e-2)
    assert score_gap(scores, (one, one), 4) is None


def test_published_tables_follow_from_the_published_rows():
    from parity_report import RESULTS, ROWS, TABLE, read_rows, tables

    assert {path.name for path in PUBLISHED.iterdir()} == {"README.md", RESULTS, ROWS, TABLE}
    assert (PUBLISHED / TABLE).read_text() == tables(PUBLISHED)
    page = (PUBLISHED / "README.md").read_text()
    for line in (PUBLISHED / TABLE).read_text().splitlines():
        assert line in page
    rows = read_rows(PUBLISHED / ROWS)
    for key in {(row.method, row.pattern, row.one, row.other) for row in rows}:
        same = [row for row in rows if (row.method, row.pattern, row.one, row.other) == key]
        assert len({row.linear for row in same}) == len(same) == 7 * 30, key
