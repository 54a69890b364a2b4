"""Mixtures of experts: every expert a linear of its own, with its own tokens, statistics and fallback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from conftest import Watched, planned, prune_folder, same_weights, save_model, sequences, weights_of
from secateur import Recipe, prune
from secateur.methods import METHODS
from secateur.models.batches import make_batches
from secateur.models.capture import capture
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.pruning.linear import FALLBACK
from secateur.statistics import Gram

EXPERTS, PER_TOKEN, WIDTH = 6, 2, 48
_COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": PER_TOKEN,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
MIXTURES = {
    "mixtral": lambda: transformers.MixtralConfig(**_COMMON, num_local_experts=EXPERTS, intermediate_size=WIDTH),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_COMMON, num_experts=EXPERTS, moe_intermediate_size=WIDTH, intermediate_size=64, head_dim=8
    ),
}


@pytest.fixture(scope="module", params=list(MIXTURES))
def mixture(request, tmp_path_factory) -> Path:
    return save_model(MIXTURES[request.param](), tmp_path_factory.mktemp(request.param))


def whole(folder: Path) -> torch.nn.Module:
    """The model as transformers has it, computing its experts one after another."""
    model = load_model(folder)
    model.set_experts_implementation("eager")
    return model


def fused(model: torch.nn.Module, name: str) -> Tensor:
    """The part of transformers' fused 3-D weights that is the linear ``name``."""
    place, number, kind = name.rsplit(".", 2)
    experts = model.get_submodule(place)
    if kind == "down_proj":
        return experts.down_proj[int(number)]
    gate, up = experts.gate_up_proj[int(number)].chunk(2)
    return gate if kind == "gate_proj" else up


def weight_in(model: torch.nn.Module, name: str) -> Tensor:
    return fused(model, name) if ".experts." in name else model.get_parameter(f"{name}.weight")


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.6), ("2:4", 0.5), ("4:8", 0.5)])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "ria", "dsnot"])
def test_prune_save_reload(mixture, tmp_path, method, pattern, sparsity, propagation):
    records, found = prune_folder(mixture, tmp_path, method, pattern, sparsity, propagation=propagation)
    assert found.sparsity == pytest.approx(sparsity, abs=0.02)
    experts = [record for record in records if ".experts." in record.name]
    assert len(experts) == 2 * EXPERTS * 3
    assert len(records) == len(experts) + 2 * 4  # and attention; the router, a parameter, stays dense
    reloaded, dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path), load_model(mixture)
    for record in records:
        weight = weight_in(reloaded, record.name)
        assert int((weight == 0).sum()) == record.zeros >= record.pruned > 0
        assert not torch.equal(weight, weight_in(dense, record.name))
    for (name, one), other in zip(reloaded.named_parameters(), dense.parameters(), strict=True):
        assert "proj" in name or torch.equal(one, other)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(MIXTURES))
def test_split_experts_compute_what_transformers_does(kind, dtype, tmp_path):
    folder = save_model(MIXTURES[kind](), tmp_path, dtype)
    skeleton, model = Skeleton(folder), whole(folder)
    batches = make_batches(sequences(), 4)
    activations = capture(skeleton, batches)
    seen: list[list[Tensor]] = [[], []]
    for module, found in zip((model.model.layers[1], model.lm_head), seen, strict=True):
        module.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0]))
    for batch in batches:
        model(**batch.model_inputs(), use_cache=False)
    for index in range(2):
        activations.advance(index, skeleton.load_block(index))
        for batch, hidden, expected in zip(batches, activations.hidden, seen[index], strict=True):
            real = batch.token_mask[..., None]
            assert torch.equal(hidden * real, expected * real)


def routed(model: torch.nn.Module, block: int) -> tuple[Tensor, Tensor]:
    """The inputs ``[tokens, hidden]`` of a block's experts and the experts ``[tokens, per token]`` chosen for each, over
    the real tokens: one sequence at a time, so nothing is padded."""
    inputs, chosen = [], []

    def hook(_, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0])
        chosen.append(args[1])

    handle = model.model.layers[block].mlp.experts.register_forward_pre_hook(hook)
    with torch.inference_mode():
        for ids in sequences():
            model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return torch.cat(inputs), torch.cat(chosen)


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
def test_every_expert_sees_the_tokens_that_were_sent_to_it(mixture, tmp_path, propagation):
    """Token counts and Grams, with padding in the batches, against the dense model's own routing."""
    method = Watched(METHODS.load("sparsegpt")())
    records, _ = prune_folder(mixture, tmp_path, method, propagation=propagation, min_tokens=0)
    tokens = {record.name: record.tokens for record in records}
    model = whole(mixture)
    for block in (0, 1) if propagation == "dense" else ():
        inputs, chosen = routed(model, block)
        assert len(inputs) == sum(map(len, sequences()))
        check_block(model, block, inputs, chosen, tokens, method)
    sent = sum(count for name, count in tokens.items() if ".0.mlp.experts." in name and "up_proj" in name)
    assert sent == PER_TOKEN * sum(map(len, sequences()))


def check_block(model, block: int, inputs: Tensor, chosen: Tensor, tokens: dict[str, int], method: Watched) -> None:
    names = [f"model.layers.{block}.mlp.experts.{expert}" for expert in range(EXPERTS)]
    counts = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
    assert len(set(counts)) > 1
    for expert, name in enumerate(names):
        assert [tokens[f"{name}.{kind}"] for kind in ("gate_proj", "up_proj", "down_proj")] == [counts[expert]] * 3
        mine = inputs[(chosen == expert).any(dim=1)]
        gate, up = (mine @ fused(model, f"{name}.{kind}").T for kind in ("gate_proj", "up_proj"))
        inner = (torch.nn.functional.silu(gate) * up).double()
        mine = mine.double()
        for kind, rows in (("gate_proj", mine), ("up_proj", mine), ("down_proj", inner)):
            with torch.inference_mode():
                gram = method.seen[f"{name}.{kind}"][Gram].matrix.double()
            expected = rows.T @ rows
            assert (gram - expected).norm() <= 1e-5 * expected.norm()
    shared = [method.seen[f"{names[0]}.{kind}"] for kind in ("gate_proj", "up_proj", "down_proj")]
    assert shared[0] is shared[1]
    assert shared[0] is not shared[2]


@pytest.mark.parametrize("propagation", ["block", "linear"])
def test_down_proj_sees_what_the_propagation_says(mixture, tmp_path, propagation):
    """Its inputs, from an expert's dense gate and up with ``block``, from its pruned ones with ``linear``; either way
    attention before it is pruned in one and dense in the other."""
    method = Watched(METHODS.load("sparsegpt")())
    prune_folder(mixture, tmp_path, method, propagation=propagation, min_tokens=0)
    model = whole(mixture)
    pruned = load_model(tmp_path)
    if propagation == "linear":
        model.model.layers[0].self_attn = pruned.model.layers[0].self_attn
    inputs, chosen = routed(model, 0)
    for expert in range(EXPERTS):
        name = f"model.layers.0.mlp.experts.{expert}"
        mine = inputs[(chosen == expert).any(dim=1)]
        grams = []
        for source in (pruned, model) if propagation == "linear" else (model, pruned):
            gate, up = (mine @ fused(source, f"{name}.{kind}").T for kind in ("gate_proj", "up_proj"))
            inner = (torch.nn.functional.silu(gate) * up).double()
            grams.append(inner.T @ inner)
        with torch.inference_mode():
            found = method.seen[f"{name}.down_proj"][Gram].matrix.double()
        assert (found - grams[0]).norm() <= 1e-4 * grams[0].norm()
        assert (found - grams[1]).norm() > 1e-2 * grams[0].norm()


def test_batch_size_and_padding_change_no_count(mixture, tmp_path):
    counts = []
    for batch in (1, 6):
        records, _ = prune_folder(mixture, tmp_path / str(batch), batch=batch, propagation="dense")
        counts.append([record.tokens for record in records])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
def test_experts_with_few_tokens_are_pruned_by_magnitude(mixture, tmp_path, propagation):
    few, _ = prune_folder(mixture, tmp_path / "few", "sparsegpt", propagation=propagation, min_tokens=45)
    prune_folder(mixture, tmp_path / "control", "magnitude")
    starved = [record for record in few if FALLBACK in record.notes]
    fed = [record for record in few if ".experts." in record.name and FALLBACK not in record.notes]
    assert starved
    assert fed
    assert all(".experts." in record.name and record.tokens < 45 for record in starved)
    assert all(record.tokens >= 45 for record in fed)
    ours, control = weights_of(tmp_path / "few", few), weights_of(tmp_path / "control", few)
    assert all(torch.equal(ours[record.name], control[record.name]) for record in starved)
    assert not any(torch.equal(ours[record.name], control[record.name]) for record in fed)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_experts_without_a_token_are_pruned_even_if_none_is_asked(tmp_path, method):
    """One short sequence leaves experts without a token; neither a fallback nor a failure when min_tokens is 0."""
    model = save_model(MIXTURES["mixtral"](), tmp_path / "dense")
    records, _ = prune_folder(model, tmp_path / "out", method, data=[[5, 6]], min_tokens=0)
    assert min(record.tokens for record in records) == 0
    assert not any(FALLBACK in record.notes for record in records)


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
def test_a_killed_run_goes_on_to_the_same_bits(mixture, tmp_path, propagation):
    prune_folder(mixture, tmp_path / "calm", "wanda", propagation=propagation)
    with pytest.raises(RuntimeError):
        prune_folder(mixture, tmp_path / "killed", Watched(METHODS.load("wanda")(), 28), propagation=propagation)
    prune_folder(mixture, tmp_path / "killed", "wanda", propagation=propagation)
    assert same_weights(tmp_path / "calm", tmp_path / "killed")


def test_starved_experts_are_a_warning_of_the_manifest(mixture, tmp_path, text_file):
    """Through the front door, with a real tokenizer."""
    recipe = Recipe.model_validate(
        {
            "model": str(mixture),
            "device": "cpu",
            "calibration": {"source": str(text_file), "samples": 6, "length": 16},
            "pruning": {"method": "wanda", "min_expert_tokens": 40},
            "evaluation": {"enabled": False},
        }
    )
    found = prune(recipe, tmp_path / "out", tmp_path / "store")
    warning = next(text for text in found.manifest["warnings"] if "saw too few tokens" in text)
    assert "pruned by magnitude" in warning
    assert "mlp.experts." in warning
    assert found.manifest["sparsity"] == pytest.approx(0.5, abs=0.01)
    whole(found.folder)


def test_the_names_of_a_plan_are_those_of_the_checkpoint(mixture):
    skeleton = Skeleton(mixture)
    plan = planned(skeleton, "magnitude")
    linears = {linear.name: linear for index in (0, 1) for linear in skeleton.linears(index)}
    assert all(skeleton.stored.keys(linears[size.name].weight.parameter) for size in plan.sizes)
    stored = {key for linear in linears.values() for key in skeleton.stored.keys(linear.weight.parameter)}
    assert stored <= set(skeleton.checkpoint.names)
    assert sum("experts" in key for key in stored) == 2 * EXPERTS * 3
