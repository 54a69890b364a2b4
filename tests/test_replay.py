"""Blocks run one at a time within the model's own forward: whatever flows between them, and what is refused."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from conftest import CONFIGS, planned, prune_folder, save_model, sequences
from secateur.errors import ModelError, UsageError
from secateur.models.batches import Batch, make_batches, unpadded
from secateur.models.capture import capture, prove
from secateur.models.hidden import HiddenStates
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.models.structure import inputs_of
from secateur.pruning.collect import collect
from secateur.pruning.rehearsal import never_called, rehearse
from secateur.pruning.trace import trace_blocks
from secateur.statistics import ColumnNorms

_COMMON: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = _COMMON | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
_MAMBA = {"mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2}
_INDEXED = _GROUPED | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "mlp_layer_types": ["dense", "sparse"],
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 6,
}

TYPES: dict[str, dict[str, Any]] = {
    "bamba": _GROUPED | _MAMBA | {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8, "attn_layer_indices": [1]},
    "cpmant": _COMMON | {"dim_head": 8, "dim_ff": 64, "prompt_length": 4, "position_bias_max_distance": 64},
    "deepseek_v32": _INDEXED,
    "gemma3n_text": _GROUPED
    | {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
        "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
    },
    "glm_moe_dsa": _INDEXED | {"indexer_types": ["full", "shared"]},
    "jamba": _GROUPED | _MAMBA | {"mamba_dt_rank": 8, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba": _COMMON | {"state_size": 8, "time_step_rank": 8},
    "openai-gpt": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "prophetnet": {
        "vocab_size": 300,
        "hidden_size": 32,
        "decoder_ffn_dim": 64,
        "num_decoder_layers": 2,
        "num_decoder_attention_heads": 4,
        "max_position_embeddings": 64,
        "is_decoder": True,
        "is_encoder_decoder": False,
    },
    "rwkv": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "context_length": 64, "rescale_every": 2},
    "xlm": {"vocab_size": 300, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    "xlnet": {"vocab_size": 300, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "d_head": 8},
    "xlstm": {"vocab_size": 300, "hidden_size": 32, "num_blocks": 2, "num_heads": 4, "chunk_size": 8},
    "zamba2": _GROUPED
    | _MAMBA
    | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=list(TYPES))
def odd_model(request, tmp_path_factory) -> Path:
    """A saved small model of every type whose blocks take or give something else than hidden states."""
    config = AutoConfig.for_model(request.param, **TYPES[request.param])
    return save_model(config, tmp_path_factory.mktemp(request.param))


def whole(folder: Path) -> transformers.PreTrainedModel:
    model = load_model(folder)
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0  # in RWKV's own words: off; weights and hidden states are the stored ones
    return model


def run(model: torch.nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        model(**batch.model_inputs(), **({} if model.config.model_type == "xlnet" else {"use_cache": False}))


@pytest.mark.parametrize("budget", [None, 0])
@torch.inference_mode()
def test_what_reaches_the_head_is_the_model_s_own(odd_model, budget):
    """Every block called twice, as pruning does, and hidden states in memory or on disk."""
    skeleton, hidden = Skeleton(odd_model), HiddenStates(budget)
    batches = make_batches([ids[:17] for ids in sequences() if len(ids) > 16], 3)
    activations = capture(skeleton, batches, hidden)
    for index in range(len(skeleton.blocks)):
        block = skeleton.load_block(index)
        for batch in range(len(activations)):
            activations.run(index, block, batch)
        activations.advance(index, block)
        skeleton.drop_block(index)
    found = [inputs.clone() for inputs in activations.head_inputs()]
    hidden.close()
    model, expected = whole(odd_model), []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    for batch in batches:
        run(model, batch)
    assert len(found) == len(expected) == 2
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def norms(folder: Path, batch: int) -> dict[str, Tensor]:
    """Of the dense model, by linear name."""
    skeleton, found = Skeleton(folder), {}
    activations = capture(skeleton, make_batches(sequences(), batch))
    left = never_called(skeleton)
    for index in range(len(skeleton.blocks)):
        block, linears = skeleton.load_block(index), skeleton.linears(index)
        linears = [linear for linear in linears if linear.name not in left]
        found |= collect(index, block, linears, activations, [ColumnNorms], True)
        skeleton.drop_block(index)
    return {name: stats[ColumnNorms].squares for name, stats in found.items()}


def test_statistics_are_those_of_each_sample_alone_in_the_whole_model(odd_model):
    """Padded or not: also where rows are in another order than tokens (XLNet), more of them (CPM-Ant, ProphetNet), or
    positions compete for the largest of scores (DeepSeek V3.2)."""
    found = norms(odd_model, 4)
    model, expected = whole(odd_model), {}
    modules = dict(model.named_modules())

    def watch(name: str):
        def before(_, args, kwargs) -> None:
            squares = inputs_of(args, kwargs).flatten(0, -2).double().square().sum(dim=0)
            expected[name] = expected.get(name, 0) + squares

        return before

    for name in found.keys() & modules.keys():  # experts are no modules of the whole model
        modules[name].register_forward_pre_hook(watch(name), with_kwargs=True)
    for batch in make_batches(sequences(), 1):
        run(model, batch)
    assert expected
    for name, squares in expected.items():
        assert torch.allclose(found[name].double(), squares, rtol=1e-4, atol=1e-5 * float(squares.max())), name


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("mamba", ["mixer.dt_proj"]),
        ("jamba", ["mamba.dt_proj"]),
        ("prophetnet", [f"cross_attn.{name}_proj" for name in ("key", "value", "query", "out")]),
    ],
)
def test_linears_that_are_never_called_are_known_beforehand_and_stay_dense(kind, ends, tmp_path):
    folder = save_model(AutoConfig.for_model(kind, **TYPES[kind]), tmp_path / "dense")
    skeleton = Skeleton(folder)
    left = never_called(skeleton)
    assert left
    assert all(name.endswith(tuple(ends)) for name in left)
    assert set(prove(skeleton, make_batches(sequences(), 2)[0]).uncalled) == left
    plan = planned(Skeleton(folder), "wanda")
    assert not left & {size.name for size in plan.sizes}
    assert any("does not call them" in str(one) and left >= set(one.names) for one in plan.left)
    records, _ = prune_folder(folder, tmp_path / "out", "wanda")
    assert not left & {record.name for record in records}


def test_a_block_that_is_never_called_stays_dense(tmp_path):
    """Llama 3.2 Vision's cross-attention, on text."""
    config = transformers.MllamaTextConfig(
        **_GROUPED | {"pad_token_id": 2, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    )
    folder = tmp_path / "dense"
    transformers.MllamaForCausalLM(config).save_pretrained(folder)
    records, _ = prune_folder(folder, tmp_path / "out", "wanda", propagation="linear")
    assert {record.block for record in records} == {0, 2}


LOOPED = AutoConfig.for_model(
    "hrm_text", vocab_size=300, hidden_size=32, intermediate_size=64, num_attention_heads=4, head_dim=8,
    max_position_embeddings=64, num_hidden_layers=2, num_layers_per_stack=2,
)  # fmt: skip


def test_a_model_that_calls_blocks_again_is_refused_before_there_is_data(tmp_path):
    folder = save_model(LOOPED, tmp_path)
    for ask in (lambda skeleton: planned(skeleton, "magnitude"), lambda skeleton: trace_blocks(skeleton, 2, 8)):
        with pytest.raises(ModelError, match=r"HrmTextForCausalLM calls block 0 again where its output head is due\."):
            ask(Skeleton(folder))


def test_a_block_that_gives_something_else_when_it_is_called_again_is_named(llama, monkeypatch):
    forward, calls = LlamaDecoderLayer.forward, []

    def counting(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs) + (len(calls) if self.self_attn.layer_idx == 1 else 0)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counting)
    with pytest.raises(ModelError, match=r"Block 1 of LlamaForCausalLM gives something else when it is called again"):
        capture(Skeleton(llama), make_batches(sequences(), 2))


def test_a_block_that_changes_its_inputs_in_place_is_named(llama, monkeypatch):
    forward = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer, "forward", lambda self, hidden, **rest: forward(self, hidden.mul_(1.5), **rest)
    )
    with pytest.raises(ModelError, match=r"Block 0 of LlamaForCausalLM gives something else when it is called again"):
        capture(Skeleton(llama), make_batches(sequences(), 2))


def test_a_forward_that_fails_says_where(llama, monkeypatch):
    forward = LlamaDecoderLayer.forward

    def failing(self, *args, **kwargs):
        if self.self_attn.layer_idx == 1:
            raise RuntimeError("no kernel for this")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", failing)
    with pytest.raises(ModelError, match=r"The forward of LlamaForCausalLM fails in block 1: RuntimeError: no kernel"):
        capture(Skeleton(llama), make_batches(sequences(), 2))


@pytest.mark.parametrize("key", ["return_dict", "output_hidden_states", "use_cache"])
def test_what_config_json_says_of_a_forward_does_not_matter(llama, tmp_path, key):
    folder = save_model(CONFIGS["llama"](), tmp_path / "dense")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: key != "return_dict"}))
    one, other = norms(llama, 2), norms(folder, 2)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def storages(shape: tuple[int, ...]) -> int:
    """How many tensors of a shape there are whose numbers are all in memory."""
    gc.collect()
    alive = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and tuple(one.shape) == shape]
    return len({one.data_ptr() for one in alive if one.untyped_storage().nbytes() >= one.nbytes})


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma3"])
@torch.inference_mode()
def test_a_batch_holds_its_hidden_states_once_or_not_at_all(architecture, tmp_path):
    """Not the embeddings they began as too, which a variable of the forward that waits still names."""
    folder = save_model(CONFIGS[architecture](), tmp_path)
    for budget, held in ((None, 1), (0, 0)):
        skeleton, hidden = Skeleton(folder), HiddenStates(budget)
        activations = capture(skeleton, make_batches([[7] * 23 for _ in range(3)], 3), hidden)
        assert storages((3, 23, 32)) == held
        activations.advance(0, skeleton.load_block(0))
        assert storages((3, 23, 32)) == held
        del activations
        hidden.close()
        assert storages((3, 23, 32)) == 0


def test_a_forward_that_waits_is_let_go_of(llama):
    activations = capture(Skeleton(llama), make_batches(sequences(), 2))
    found = weakref.ref(activations._forwards[0]._run)
    del activations
    assert found() is None


def test_what_is_used_in_some_batches_only_is_refused_not_garbage(llama, monkeypatch):
    """The proof saw two sequences, for which the model lets its embeddings go; for three it comes back to them."""

    def returning(self, input_ids=None, **kwargs):
        embedded = self.embed_tokens(input_ids)
        hidden = embedded
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None]))
            hidden = hidden + embedded if len(input_ids) > 2 else hidden
        return transformers.modeling_outputs.BaseModelOutputWithPast(last_hidden_state=hidden)

    monkeypatch.setattr(LlamaModel, "forward", returning)
    skeleton = Skeleton(llama)
    activations = capture(skeleton, make_batches([[7] * 9 for _ in range(3)], 3))
    activations.advance(0, skeleton.load_block(0))
    with pytest.raises(ModelError, match="computes with what it had before its first block in some batches"):
        activations.advance(1, skeleton.load_block(1))


def test_weighed_tokens_whose_rows_cannot_be_told_are_refused(tmp_path):
    folder = save_model(AutoConfig.for_model("cpmant", **TYPES["cpmant"]), tmp_path)
    batches = make_batches(sequences(), 2, [3] * 6, 0.5)
    with pytest.raises(
        UsageError, match=r"prompt_weight cannot be followed in CpmAntForCausalLM: cpmant\.encoder\.layers\.0"
    ):
        capture(Skeleton(folder), batches)


def test_batches_of_one_length_hold_the_same_tokens():
    batch = make_batches([[1, 2, 3], [4, 5], [6, 7, 8], [9]], 4, [1, 1, 1, 1], 0.5)[0]
    parts = unpadded(batch)
    assert [part.ids.tolist() for part in parts] == [[[1, 2, 3], [6, 7, 8]], [[4, 5]], [[9]]]
    assert all(part.mask is None for part in parts)
    assert [part.weights.tolist() for part in parts] == [[[0.5, 1, 1], [0.5, 1, 1]], [[0.5, 1]], [[0.5]]]


def test_padding_stays_where_it_does_no_harm(llama):
    activations = capture(Skeleton(llama), make_batches(sequences(), 4))
    assert [mask is not None for mask in activations.masks] == [True, True]


def test_without_storage_a_model_runs_as_it_does_with(llama):
    seen = []

    def run_block(index, block, call):
        seen.append((index, block.self_attn.q_proj.weight.is_meta))
        return block(*call.args, **call.kwargs), index

    assert rehearse(Skeleton(llama), 2, 8, run_block) == {0: 0, 1: 1}
    assert seen == [(0, True), (1, True)]
