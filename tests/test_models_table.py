"""The table of models: twelve types of twelve kinds pruned and held against the oracle, and the oracle held against errors."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import models_table
from model_types.build import all_types, default_config, load, make, sequences, tiny_config
from model_types.compare import Oracle, block_of
from model_types.expected import lowest_dropped, sparsegpt, wanda
from model_types.hints import BY_NATURE, HINTS
from model_types.page import page
from model_types.products import Region, find_regions
from model_types.pruning import Progress, Pruned, Setting, add_tokenizer, calibration_set, prune
from model_types.sizes import FIRST, SPECIAL_TOKENS
from model_types.trial import PADDING_IS_FELT, Row, try_type
from secateur.masks import parse_pattern
from secateur.methods.sparsegpt import SparseGPT
from secateur.models.batches import Batch
from secateur.statistics import Gram, InputStatistics

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, of other versions to come

KINDS = {
    "gpt2": "weights stored [in, out]; q, k and v in one; the head tied",
    "mixtral": "experts stored one by one under other names, fused when loaded",
    "gpt_oss": "experts stored [in, out], gate and up alternating, with biases",
    "llama4": "the language part of a vision-language checkpoint; experts multiplied all at once",
    "dbrx": "experts stored under one another in a matrix of two dimensions",
    "deepseek_v3": "latent attention, grouped routing, shared experts, a dense block first",
    "qwen3_5_moe": "linear and full attention in turn, in a vision-language checkpoint",
    "gemma3": "a vision-language model that is the causal LM itself",
    "nemotron_h": "blocks of four kinds: state space, attention, mixture, MLP",
    "zamba2": "blocks that share their attention",
    "jetmoe": "mixtures of attention heads",
    "bart": "the decoder of an encoder-decoder class; embeddings tied under several names",
}
WAYS = [Setting("wanda", "2:4", "block"), Setting("sparsegpt", "unstructured", "dense")]


@pytest.mark.parametrize("model_type", list(KINDS))
def test_a_type_of_every_kind_agrees(model_type, tmp_path):
    row = try_type(model_type, tmp_path / "work", WAYS)
    assert (row.outcome, row.detail) == ("agrees", "")
    assert row.compared > 0
    assert not row.unseen
    for way in WAYS:
        assert row.settings[str(way)]["blind"] > 0.05  # masks that disregard the inputs would not agree


@dataclass
class Tiny:
    """A saved model, its oracle and its calibration set."""

    folder: Path
    oracle: Oracle
    calibration: Path

    def pruned(self, out: Path, way: Setting) -> Pruned:
        return prune(self.folder, self.calibration, way, out, Progress())


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Tiny:
    place = tmp_path_factory.mktemp("llama")
    make("llama", place / "dense")
    model = load(place / "dense")
    tokens = sequences(model)
    add_tokenizer(place / "dense", FIRST.vocabulary)
    return Tiny(place / "dense", Oracle(model, tokens), calibration_set(place / "dense", tokens, place / "set"))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_comparison_notices_padding_that_counts(llama, tmp_path, monkeypatch, way):
    assert not llama.oracle.compare(llama.pruned(tmp_path / "sound", way), way).differing()
    assert llama.oracle.padding_matters() < PADDING_IS_FELT
    monkeypatch.setattr(Batch, "counted", property(lambda batch: None))
    assert llama.oracle.compare(llama.pruned(tmp_path / "unsound", way), way).differing()


def test_the_comparison_notices_what_transformers_does_not_load_as_pruned(llama, tmp_path):
    found = llama.pruned(tmp_path / "out", WAYS[0])
    file, dense = found.folder / "model.safetensors", load_file(llama.folder / "model.safetensors")
    name, other = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    save_file(load_file(file) | {name: dense[name], other: dense[other] + 1}, file, {"format": "pt"})
    comparison = llama.oracle.compare(found, WAYS[0])
    assert comparison.left_dense == [name]
    assert 0.5 < comparison.pruned_share < 1
    assert any(f"{other} was changed" in problem for problem in comparison.problems)
    assert any("zeros" in problem for problem in comparison.problems)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
@pytest.mark.parametrize("inputs", [64, 160])
def test_plain_sparsegpt_is_secateurs(inputs, pattern):
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(24, inputs, generator=generator), torch.randn(400, inputs, generator=generator)
    rows[:, 3] = 0
    gram = Gram(inputs)
    gram.update(rows)
    way = Setting("sparsegpt", pattern, "dense")
    own = SparseGPT().prune(weight, InputStatistics([gram]), parse_pattern(pattern), 0.5).mask
    assert torch.equal(sparsegpt(weight, rows.double().T @ rows.double(), way.group), own)


def test_plain_wanda_by_hand():
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    gram = torch.diag(torch.tensor([100.0, 1.0, 1.0, 100.0], dtype=torch.float64))
    expected = torch.tensor([[True, False, False, True], [True, False, False, True]])
    assert torch.equal(wanda(weight, gram, None), expected)
    assert torch.equal(wanda(weight, gram, 4), expected)
    assert lowest_dropped(torch.ones(1, 4), 2).tolist() == [[False, True, False, True]]


def test_regions_of_a_parameter():
    experts, linear = torch.zeros(3, 8, 4), torch.zeros(8, 4)
    assert find_regions("e", experts, experts[2].T) == [Region("e", 2, False, (0, 8), (0, 4))]
    assert find_regions("e", experts, experts[1]) == [Region("e", 1, True, (0, 4), (0, 8))]
    assert find_regions("w", linear, linear[4:].T) == [Region("w", 0, False, (4, 8), (0, 4))]
    together = experts.view(-1, 4).T
    assert find_regions("e", experts, together) == [Region("e", n, False, (0, 8), (0, 4)) for n in range(3)]
    assert find_regions("w", linear, linear.view(4, 8)) == []


def test_blocks_are_the_outermost_list(llama):
    model = llama.oracle.dense
    assert block_of(model, "model.layers.1.mlp.up_proj.weight") == ("model.layers", 1)
    assert block_of(model, "lm_head.weight") == ("", 0)


@pytest.mark.parametrize(
    ("model_type", "lists"),
    [
        ("qwen3_next", ["layer_types"]),
        ("gemma3n_text", ["layer_types", "activation_sparsity_pattern"]),
        ("dots3_note_text", ["layer_types", "mlp_layer_types"]),
        ("llama4", ["layer_types", "no_rope_layers"]),
    ],
)
def test_tiny_configurations_have_every_kind_of_block(model_type, lists):
    scale = replace(FIRST, kv_heads=FIRST.heads)
    whole, small = default_config(model_type).get_text_config(), tiny_config(model_type, scale).get_text_config()
    for name in lists:
        assert set(getattr(small, name)) == set(getattr(whole, name))
        assert len(getattr(small, name)) == small.num_hidden_layers
    assert small.num_hidden_layers < whole.num_hidden_layers
    assert small.hidden_size == FIRST.hidden


def test_special_tokens_are_not_in_the_data():
    config = tiny_config("gemma3", FIRST)
    special = [value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))]
    assert len(special) > 2
    assert all(token < SPECIAL_TOKENS for token in special if isinstance(token, int))


def test_hints_are_of_types_that_there_are():
    assert set(HINTS) | set(BY_NATURE) <= set(all_types())
    assert set(KINDS) <= set(all_types())


def test_rows_are_made_once_and_failures_are_rows(tmp_path, monkeypatch, capsys):
    tried = []

    def row(context, model_type, *_):
        tried.append(model_type)
        return Row(model_type, outcome="agrees", linears=2, compared=2)

    monkeypatch.setattr(models_table, "in_process", row)
    command = [
        "models_table.py",
        "--only",
        "gpt2",
        "musicgen",
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path / "page"),
    ]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", command)
        models_table.main()
    assert tried == ["gpt2", "musicgen"]
    assert "| agrees | 2, 1 of them by nature |" in capsys.readouterr().out
    assert "| `gpt2` |" in (tmp_path / "page").read_text()


def test_a_process_that_dies_is_a_row(tmp_path, monkeypatch):
    import multiprocessing

    row = models_table.in_process(multiprocessing.get_context("fork"), "gpt2", [None], tmp_path, 60)
    assert row.outcome == "traceback"


def test_unknown_types_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["models_table.py", "--only", "nosuch"])
    with pytest.raises(SystemExit) as found:
        models_table.main()
    assert found.value.code == 2
    assert "has no causal LM of the type nosuch." in capsys.readouterr().err


def test_a_page_names_what_was_refused():
    rows = [
        Row("a", "AForCausalLM", "refused beforehand", "It is | quantised."),
        Row("musicgen", outcome="not built", detail="AttributeError"),
    ]
    text = page(rows, WAYS, "command")
    assert "refused beforehand: It is \\| quantised." in text
    assert f"by nature: {BY_NATURE['musicgen']}" in text
