"""The whole path on two-block models of every supported architecture: replay, prune, save, reload, verify."""

from __future__ import annotations

import gc

import pytest
import torch
import transformers

from conftest import CONFIGS, planned, save_model, sequences
from conftest import prune_folder as prune
from secateur.allocation.uniform import Uniform
from secateur.errors import ModelError, NumericsError, PatternError, UsageError, VerificationError
from secateur.masks import parse_pattern
from secateur.methods import METHODS
from secateur.models.batches import make_batches
from secateur.models.capture import capture
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.pruning.plan import plan_pruning
from secateur.pruning.verify import verify


@pytest.mark.parametrize("method", list(METHODS.entries()))
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.6), ("2:4", 0.5), ("4:8", 0.5)])
def test_prune_save_reload_verify(any_model, tmp_path, method, pattern, sparsity):
    records, found = prune(any_model, tmp_path, method, pattern, sparsity)
    assert found.sparsity == pytest.approx(sparsity, abs=0.02)
    assert found.linears == len(records)
    reloaded = load_model(tmp_path)
    dense = load_model(any_model)
    for record in records:
        weight = reloaded.get_parameter(f"{record.name}.weight")
        assert int((weight == 0).sum()) == record.zeros >= record.pruned
        assert not torch.equal(weight, dense.get_parameter(f"{record.name}.weight"))
    with torch.inference_mode():
        logits = reloaded(torch.tensor([sequences()[0]])).logits
    assert logits.isfinite().all()


@torch.inference_mode()
def test_replaying_blocks_is_the_model_s_own_forward(any_model):
    skeleton, batches = Skeleton(any_model), make_batches(sequences(), 4)
    activations = capture(skeleton, batches)
    for index in range(len(skeleton.blocks)):
        activations.advance(index, skeleton.load_block(index))
        skeleton.drop_block(index)
    model = load_model(any_model)
    seen: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch, found in zip(batches, activations.head_inputs(), strict=True):
        model(**batch.model_inputs(), use_cache=False)
        assert torch.equal(found[batch.token_mask], seen.pop()[batch.token_mask])


def test_statistics_see_the_pruned_predecessors_not_padding(llama, tmp_path):
    """Against the plain procedure on the whole model in memory: hooks, prune a block, run it again."""
    records, _ = prune(llama, tmp_path / "ours", "wanda", "unstructured", 0.5)
    model = load_model(llama)
    for block in model.model.layers:
        squares: dict[str, torch.Tensor] = {}
        linears = {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        handles = [
            module.register_forward_pre_hook(
                lambda _, args, name=name: squares.__setitem__(
                    name, squares.get(name, 0) + args[0][0].square().sum(dim=0)
                )
            )
            for name, module in linears.items()
        ]
        with torch.inference_mode():
            for ids in sequences():  # one at a time: nothing is padded
                model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        for name, module in linears.items():
            scores = module.weight.abs() * squares[name].sqrt()
            keep = scores > scores.kthvalue(scores.shape[1] // 2, dim=1, keepdim=True).values
            module.weight.data *= keep
    ours = load_model(tmp_path / "ours")
    for record in records:
        expected, found = model.get_parameter(f"{record.name}.weight"), ours.get_parameter(f"{record.name}.weight")
        assert (expected != found).float().mean() < 0.002, record.name


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_batch_size_and_padding_change_no_mask(llama, tmp_path, method):
    prune(llama, tmp_path / "a", method, batch=1)
    prune(llama, tmp_path / "b", method, batch=6)
    one, other = Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b")
    names = [name for name in one.names if "proj" in name]
    different = sum(int(((one.read(n) == 0) != (other.read(n) == 0)).sum()) for n in names)
    assert different <= 2e-4 * sum(one.read(name).numel() for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_stay_in_the_type_they_are_stored_in(tmp_path, dtype):
    model = save_model(CONFIGS["llama"](), tmp_path / "dense", dtype)
    prune(model, tmp_path / "pruned", "sparsegpt")
    assert Checkpoint(tmp_path / "pruned").dtype() == dtype


def test_the_head_is_pruned_only_when_asked(llama, tmp_path):
    records, _ = prune(llama, tmp_path / "without", "wanda")
    assert not any(record.name == "lm_head" for record in records)
    for method in METHODS.entries():
        records, _ = prune(llama, tmp_path / method, method, head=True)
        assert records[-1].name == "lm_head"
        assert records[-1].pruned == 300 * 32 // 2


def test_the_statistics_of_the_head_are_those_of_its_inputs(llama, tmp_path):
    prune(llama, tmp_path, "wanda", "unstructured", 0.5, head=True)
    ours = load_model(tmp_path)
    inputs: list[torch.Tensor] = []
    handle = ours.lm_head.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    with torch.inference_mode():
        for ids in sequences():
            ours(torch.tensor([ids]), use_cache=False)
    handle.remove()
    dense = load_model(llama).lm_head.weight
    scores = dense.abs() * torch.cat(inputs).square().sum(dim=0).sqrt()
    keep = scores > scores.kthvalue(16, dim=1, keepdim=True).values
    assert ((ours.lm_head.weight != 0) != keep).float().mean() < 0.002


def test_a_tied_head_is_refused(tmp_path):
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    model = save_model(config, tmp_path)
    with pytest.raises(ModelError, match="tied to its input embeddings"):
        plan_pruning(Skeleton(model), METHODS.load("wanda")(), parse_pattern("2:4"), 0.5, Uniform(), head=True)


def test_experts_stored_in_an_unknown_way_stay_dense_and_are_named(tmp_path):
    config = transformers.JetMoeConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8,
        num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    folder = save_model(config, tmp_path / "dense")
    plan = planned(Skeleton(folder), "magnitude")
    assert any("no linears that Secateur can take apart" in str(one) for one in plan.left)
    records, _ = prune(folder, tmp_path / "out", "wanda")
    assert {record.name.rpartition(".")[2] for record in records} == {"kv_proj"}


def test_an_encoder_decoder_is_refused(tmp_path):
    config = transformers.T5Config(vocab_size=300, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="decoder-only"):
        Skeleton(tmp_path)


def test_only_a_block_is_ever_loaded(llama):
    skeleton = Skeleton(llama)
    capture(skeleton, make_batches(sequences(), 2))
    gc.collect()
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    skeleton.load_block(1)
    loaded = [name for name, parameter in skeleton.model.named_parameters() if not parameter.is_meta]
    assert loaded
    assert all(name.startswith("model.layers.1.") for name in loaded)


def test_linears_that_share_an_input_share_a_statistic(llama):
    from secateur.pruning.collect import collect
    from secateur.statistics import Gram

    skeleton = Skeleton(llama)
    activations = capture(skeleton, make_batches(sequences(), 2))
    found = collect(0, skeleton.load_block(0), skeleton.linears(0), activations, [Gram], advance=False)
    by_kind = {name.rpartition(".")[2]: stats for name, stats in found.items()}
    assert by_kind["q_proj"] is by_kind["k_proj"] is by_kind["v_proj"]
    assert by_kind["gate_proj"] is by_kind["up_proj"]
    assert len({id(stats) for stats in found.values()}) == 4
    assert by_kind["q_proj"].tokens == sum(map(len, sequences()))


def test_activations_that_are_not_finite_name_block_and_linear(tmp_path):
    model = save_model(CONFIGS["llama"](), tmp_path / "dense")
    checkpoint = Checkpoint(model)
    name = "model.layers.1.mlp.up_proj.weight"
    checkpoint.patch({name: torch.full_like(checkpoint.read(name), float("nan"))})
    with pytest.raises(NumericsError, match=r"inputs of model\.layers\.1\.mlp\.down_proj \(block 1\) are not finite"):
        prune(model, tmp_path / "out", "wanda")


def test_skip_leaves_linears_dense_and_must_match(llama, tmp_path):
    records, _ = prune(llama, tmp_path / "a", "wanda", skip=["*.k_proj", "model.layers.0.*"])
    assert {record.block for record in records} == {1}
    assert not any("k_proj" in record.name for record in records)
    with pytest.raises(UsageError, match="matches no linear; they are named like"):
        prune(llama, tmp_path / "b", "wanda", skip=["*.kproj"])
    with pytest.raises(UsageError, match="leaves no linear"):
        prune(llama, tmp_path / "c", "wanda", skip=["*"])


def test_a_pattern_that_does_not_fit_names_the_linear(llama, tmp_path):
    with pytest.raises(PatternError, match=r"self_attn\.q_proj has 32 inputs, which do not divide into groups of 5"):
        prune(llama, tmp_path, "wanda", "2:5", 0.6)


@pytest.mark.parametrize("damage", ["pattern", "untouched", "nan", "zeros"])
def test_verification_notices_damage(llama, tmp_path, damage):
    records, _ = prune(llama, tmp_path, "wanda")
    output = Checkpoint(tmp_path)
    key = "model.norm.weight" if damage == "untouched" else records[3].key
    tensor = output.read(key)
    if damage == "pattern":
        tensor[0, :4] = 1.0
    elif damage == "untouched":
        tensor[0] += 1e-7 + tensor[0].abs() * 1e-6
    elif damage == "nan":
        tensor[tensor != 0] = float("nan")
    else:
        tensor[0] = 0
    output.patch({key: tensor})
    with pytest.raises(VerificationError, match="is not what it should be") as caught:
        verify(Skeleton(llama), tmp_path, records, parse_pattern("2:4"), {record.name: 0.5 for record in records})
    assert caught.value.exit_code == 1


def test_shards_stay_as_they_are(tmp_path):
    model = load_model(save_model(CONFIGS["llama"](), tmp_path / "whole"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    sharded = Checkpoint(tmp_path / "sharded")
    assert len(sharded.files) > 2
    prune(tmp_path / "sharded", tmp_path / "out", "wanda")
    prune(tmp_path / "whole", tmp_path / "other", "wanda")
    out, other = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "other")
    assert out.files == sharded.files
    for name in out.names:
        assert torch.equal(out.read(name), other.read(name))
        assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "sharded" / "config.json").read_bytes()
