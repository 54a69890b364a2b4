"""Checkpoints whose stored names and layouts are not the model's own: read, pruned and written as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import CONFIGS, prune_folder, save_model, sequences, weights_of
from secateur.errors import ModelError, UsageError
from secateur.models.checkpoint import Checkpoint
from secateur.models.experts import take_over_experts
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.models.stored import Place, same_bits

_SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
_VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 4,
}
KINDS = {
    "fused as they are, with biases, interleaved, transposed": lambda: transformers.GptOssConfig(
        **_SMALL, num_local_experts=4, head_dim=8, sliding_window=8
    ),
    "one tensor for all experts under other names": lambda: transformers.GraniteMoeConfig(**_SMALL, num_local_experts=4),
    "a tensor for each expert": lambda: transformers.MixtralConfig(**_SMALL, num_local_experts=4),
    "a tensor for each expert, low rank attention": lambda: transformers.DeepseekV3Config(
        **_SMALL | {"num_key_value_heads": 4}, **_MLA, **_ROUTED, n_group=1, topk_group=1, n_shared_experts=1
    ),
    "experts that see all tokens": lambda: transformers.Llama4TextConfig(
        **_SMALL, intermediate_size_mlp=48, num_local_experts=4, head_dim=8, interleave_moe_layer_step=2
    ),
    "without a gate, beside a state space": lambda: transformers.NemotronHConfig(
        **_SMALL, layers_block_type=["moe", "mamba", "attention", "mlp"], head_dim=8, mamba_num_heads=4, mamba_head_dim=8,
        ssm_state_size=8, n_groups=1, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16, chunk_size=8,
    ),
    "inside a vision-language model with more weights in its eyes": lambda: transformers.Gemma3Config(
        text_config=_SMALL | {"head_dim": 8, "sliding_window": 8}, vision_config=_VISION | {"image_size": 8},
        mm_tokens_per_image=1, image_token_index=299, boi_token_index=298, eoi_token_index=297,
    ),
    "renamed": lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, tmp_path_factory) -> Path:
    return save_model(KINDS[request.param](), tmp_path_factory.mktemp("dense"))


def test_what_is_read_is_what_transformers_loads(kind):
    skeleton, model = Skeleton(kind), load_model(kind)
    state = model.state_dict()
    assert state
    for name, tensor in state.items():
        assert same_bits(skeleton.stored.read(Place(name)), tensor), name


def test_what_is_pruned_is_what_transformers_loads_and_all_else_is_bit_identical(kind, tmp_path):
    records, found = prune_folder(kind, tmp_path, "wanda")
    assert found.linears == len(records) >= 8
    weights, dense, pruned = weights_of(tmp_path, records), load_model(kind), load_model(tmp_path)
    skeleton = Skeleton(kind)
    linears = {linear.name: linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)}
    expected = dense.state_dict()
    for record in records:
        linear = linears[record.name]
        part = pruned.state_dict()[linear.weight.parameter][linear.weight.part]
        assert torch.equal(linear.as_rows(part), weights[record.name])
        assert int((part == 0).sum()) == record.zeros >= record.weights // 2
        expected[linear.weight.parameter][linear.weight.part] = part
    for name, tensor in pruned.state_dict().items():
        assert same_bits(tensor, expected[name]), name
    before, after = Checkpoint(kind), Checkpoint(tmp_path)
    assert before.names == after.names
    assert all(before.shape(name) == after.shape(name) for name in before.names)


@torch.inference_mode()
def test_experts_one_by_one_compute_what_transformers_does(kind):
    model, split = load_model(kind), load_model(kind)
    take_over_experts(split)
    for ids in sequences()[:3]:
        batch = torch.tensor([ids])
        torch.testing.assert_close(split(batch).logits, model(batch).logits, rtol=1e-3, atol=1e-4)


def test_experts_that_compute_something_else_are_refused(tmp_path, monkeypatch):
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    former = MixtralExperts.forward

    def louder(self, hidden_states, top_k_index, top_k_weights):
        return 1.1 * former(self, hidden_states, top_k_index, top_k_weights)

    monkeypatch.setattr(MixtralExperts, "forward", louder)
    folder = save_model(KINDS["a tensor for each expert"](), tmp_path / "dense")
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.experts \(MixtralExperts\) compute something else"):
        prune_folder(folder, tmp_path / "out", "wanda")


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_pair_is_read_under_either_name(tmp_path, kept):
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    folder = save_model(config, tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | {kept: embedding}, folder / "model.safetensors", {"format": "pt"})
    skeleton = Skeleton(folder)
    assert torch.equal(skeleton.stored.read(Place("model.embed_tokens.weight")), embedding)
    with pytest.raises(ModelError, match="tied to its input embeddings"):
        skeleton.head()
    prune_folder(folder, tmp_path / "out", "wanda")
    assert torch.equal(load_model(tmp_path / "out").get_input_embeddings().weight, embedding)


def test_a_weight_stored_twice_is_pruned_under_both_names(tmp_path):
    folder = save_model(KINDS["renamed"](), tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    twice = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items() if ".c_fc." in name}
    other = {"h.0.mlp.c_proj.weight": torch.ones(128, 32)}  # sorted first: this is the one that transformers loads
    save_file(tensors | twice | other, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_model(folder).transformer.h[0].mlp.c_proj.weight, other["h.0.mlp.c_proj.weight"])
    records, _ = prune_folder(folder, tmp_path / "out", "magnitude")
    loaded, after = load_model(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    for record in records:
        assert int((loaded.get_parameter(f"{record.name}.weight") == 0).sum()) == record.zeros >= record.weights // 2
    for name in twice:
        assert torch.equal(after[name], after[f"transformer.{name}"])
    assert torch.equal(after["transformer.h.0.mlp.c_proj.weight"], tensors["transformer.h.0.mlp.c_proj.weight"])
    assert (after["h.0.mlp.c_proj.weight"] == 0).sum() == 128 * 16


def test_stray_tensors_are_kept_bit_for_bit_and_listed(llama, tmp_path):
    folder = tmp_path / "dense"
    Checkpoint(llama).copy_to(folder)
    tensors = load_file(folder / "model.safetensors")
    stray = {"model.layers.2.eh_proj.weight": torch.randn(4, 4), "model.layers.0.mlp.up_proj.bias": torch.randn(64)}
    save_file(tensors | stray, folder / "model.safetensors", {"format": "pt"})
    assert sorted(Skeleton(folder).stored.strays) == sorted(stray)
    prune_folder(folder, tmp_path / "out", "wanda")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(same_bits(after[name], tensor) for name, tensor in stray.items())


def test_an_interrupted_run_writes_conversions_once(kind, tmp_path):
    """What a block's conversion staged is in the files before the journal says that the block is done."""
    from conftest import Killed, Watched, same_weights
    from secateur.methods import METHODS

    prune_folder(kind, tmp_path / "calm", "wanda")
    with pytest.raises(Killed):
        prune_folder(kind, tmp_path / "killed", Watched(METHODS.load("wanda")(), 5))
    prune_folder(kind, tmp_path / "killed", "wanda")
    assert same_weights(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_are_as_wide_as_transformers_loads_them(tmp_path, dtype):
    folder = save_model(KINDS["a tensor for each expert, low rank attention"](), tmp_path)
    skeleton, model = Skeleton(folder, dtype=dtype), load_model(folder, dtype=dtype)
    block = skeleton.load_block(1)
    for name, tensor in model.model.layers[1].state_dict().items():
        assert block.state_dict()[name].dtype == tensor.dtype, name
    assert block.mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert block.mlp.experts.down_proj.dtype == dtype


def test_what_steers_stays_dense_unless_asked(tmp_path):
    folder = save_model(transformers.PhimoeConfig(**_SMALL, num_local_experts=4), tmp_path / "dense")
    records, _ = prune_folder(folder, tmp_path / "out", "wanda")
    assert not any("router" in record.name for record in records)
    records, _ = prune_folder(folder, tmp_path / "asked", "wanda", include=["*.router"])
    assert sum("router" in record.name for record in records) == 2
    with pytest.raises(UsageError, match="include has"):
        prune_folder(folder, tmp_path / "none", "wanda", include=["*.q_proj"])


def test_a_conversion_that_has_no_way_back_is_refused(tmp_path, monkeypatch):
    from transformers.core_model_loading import SplitModulelist

    folder = save_model(KINDS["a tensor for each expert"](), tmp_path / "dense")
    former = SplitModulelist.convert
    monkeypatch.setattr(
        SplitModulelist,
        "convert",
        lambda self, *args, **kwargs: {name: 0 * tensor for name, tensor in former(self, *args, **kwargs).items()},
    )
    with pytest.raises(ModelError, match="does not give the stored numbers back"):
        prune_folder(folder, tmp_path / "out", "magnitude")


def test_a_module_of_blocks_is_the_language_model_s():
    config = KINDS["inside a vision-language model with more weights in its eyes"]()
    from secateur.models.structure import find_blocks

    name, blocks = find_blocks(transformers.AutoModelForCausalLM.from_config(config))
    assert name == "model.language_model.layers"
    assert isinstance(blocks, nn.ModuleList)
