"""Where a linear's inputs come from: the three propagations, against plain procedures; interruptions; states on disk."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from conftest import CONFIGS, Killed, Watched, masks_of, prune_folder, same_weights, save_model, sequences
from secateur.allocation.owl import OWL
from secateur.errors import NumericsError
from secateur.methods import METHODS
from secateur.models.batches import make_batches
from secateur.models.capture import capture
from secateur.models.checkpoint import Checkpoint
from secateur.models.hidden import PREFIX, HiddenStates
from secateur.models.loading import load_model
from secateur.models.skeleton import Skeleton
from secateur.pruning.collect import collect
from secateur.statistics import ColumnNorms, Gram, InputStatistics

PROPAGATIONS = ["block", "linear", "dense"]
SOME = {"sparsity": 0.6, "pattern": "unstructured"}


def watched(method: str, lives: int = 10**9) -> Watched:
    return Watched(METHODS.load(method)(), lives)


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize(("method", "pattern", "sparsity"), [("wanda", "unstructured", 0.6), ("sparsegpt", "2:4", 0.5)])
def test_every_propagation_prunes_every_architecture(any_model, tmp_path, method, pattern, sparsity, propagation):
    records, found = prune_folder(any_model, tmp_path, method, pattern, sparsity, propagation=propagation)
    assert found.sparsity == pytest.approx(sparsity, abs=0.02)
    tokens = sum(map(len, sequences()))
    assert [(record.name, record.tokens) for record in records] == [(record.name, tokens) for record in records]
    assert load_model(tmp_path)(torch.tensor([sequences()[0]])).logits.isfinite().all()


# The three procedures as anybody would write them: the whole model in memory, one sample at a time, fp64 sums.


def squares_of(model: torch.nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Sum of squares of the inputs of the named linears over all samples, fp64 ``[inputs]``."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_, args: tuple[Tensor, ...]) -> None:
            found[name] = found.get(name, 0) + args[0].flatten(0, -2).double().square().sum(dim=0)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    with torch.inference_mode():
        for ids in sequences():
            model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def wanda_in_place(model: torch.nn.Module, name: str, squares: Tensor) -> None:
    weight = model.get_submodule(name).weight
    scores = weight.abs() * squares.sqrt().float()
    drop = scores.argsort(dim=1, stable=True)[:, : weight.shape[1] // 2]
    weight.data.scatter_(1, drop, 0.0)


def plainly(model: torch.nn.Module, propagation: str) -> dict[str, Tensor]:
    """Prune ``model`` by Wanda to 50 %; the squares each linear was pruned by."""
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    blocks = [[n for n in linears if f".layers.{block}." in n] for block in range(2)]
    together = {"dense": [linears], "block": blocks, "linear": [[name] for name in linears]}[propagation]
    found: dict[str, Tensor] = {}
    for names in together:
        squares = squares_of(model, names)
        found |= squares
        for name in names:
            wanda_in_place(model, name, squares[name])
    return found


def distance(ours: Mapping[str, InputStatistics], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative error of the column norms."""
    return max(float((ours[name][ColumnNorms].squares / squares - 1).abs().max()) for name, squares in theirs.items())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma3", "opt"])
def test_statistics_are_those_of_the_plain_procedure(architecture, tmp_path):
    dense = save_model(CONFIGS[architecture](), tmp_path / "dense")
    theirs = {}
    for propagation in PROPAGATIONS:
        model = load_model(dense)
        theirs[propagation] = plainly(model, propagation)
        method = watched("wanda")
        out = tmp_path / f"out-{propagation}"
        records, _ = prune_folder(dense, out, method, "unstructured", 0.5, propagation=propagation)
        assert method.seen.keys() == theirs[propagation].keys()
        assert distance(method.seen, theirs[propagation]) < 1e-3
        for name, mask in masks_of(out, records).items():
            # Rounding may turn a weight or two; each of the others has hundreds elsewhere.
            assert int((mask != (model.get_submodule(name).weight != 0)).sum()) <= 4, (propagation, name)
        # What another procedure gives is far away: the comparison can fail.
        assert all(distance(method.seen, other) > 0.05 for key, other in theirs.items() if key != propagation)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_propagations_agree_as_far_as_nothing_pruned_lies_before(llama, tmp_path, method):
    masks = {}
    for propagation in PROPAGATIONS:
        records, _ = prune_folder(llama, tmp_path / propagation, method, **SOME, propagation=propagation)
        masks[propagation] = masks_of(tmp_path / propagation, records)
    block, linear, dense = (masks[propagation] for propagation in PROPAGATIONS)
    first, last = "model.layers.0.", "model.layers.1.mlp.down_proj"
    for name in ("q_proj", "k_proj", "v_proj"):
        name = f"{first}self_attn.{name}"
        assert torch.equal(block[name], linear[name])
    for name in block:  # the whole first block sees the dense model in both
        assert not name.startswith(first) or torch.equal(block[name], dense[name])
    for one, other in ((block, linear), (block, dense), (linear, dense)):
        assert not torch.equal(one[last], other[last])
    assert not torch.equal(block[f"{first}mlp.down_proj"], linear[f"{first}mlp.down_proj"])


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox", "gpt2", "opt"])
@torch.inference_mode()
def test_what_the_last_block_gets_is_the_forward_of_the_pruned_model(architecture, propagation, tmp_path):
    """With the head asked for, what the head gets; the dense model's if dense."""
    model = save_model(CONFIGS[architecture](), tmp_path / "dense")
    hidden = HiddenStates()
    options = {"head": True} if architecture == "llama" else {}
    prune_folder(model, tmp_path / "out", "sparsegpt", propagation=propagation, hidden=hidden, **options)
    whole = {name: load_model(tmp_path / name) for name in ("dense", "out")}
    expected = {}
    for name, loaded in whole.items():
        seen: list[Tensor] = []
        last = loaded.get_output_embeddings() if options else loaded.get_submodule(Skeleton(model).prefix)[-1]
        last.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        for batch in make_batches(sequences(), 4):
            loaded(**batch.model_inputs(), use_cache=False)
        expected[name] = seen
    for number, batch in enumerate(make_batches(sequences(), 4)):
        real = batch.token_mask[..., None]
        right, wrong = ("dense", "out") if propagation == "dense" else ("out", "dense")
        assert torch.equal(hidden[number] * real, expected[right][number] * real)
        assert not torch.allclose(hidden[number] * real, expected[wrong][number] * real, atol=1e-2)


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_batch_size_changes_no_wanda_mask(any_model, tmp_path, propagation):
    masks = []
    for batch in (1, 4, 6):
        out = tmp_path / str(batch)
        records, _ = prune_folder(any_model, out, "wanda", **SOME, batch=batch, propagation=propagation)
        masks.append(masks_of(out, records))
    weights = sum(mask.numel() for mask in masks[0].values())
    for other in masks[1:]:
        different = sum(int((masks[0][name] != other[name]).sum()) for name in other)
        assert different <= 2e-4 * weights


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
@torch.inference_mode()
def test_a_forward_that_stops_early_has_fed_every_statistic(architecture, tmp_path):
    skeleton = Skeleton(save_model(CONFIGS[architecture](), tmp_path))
    found, calls = {}, {}
    for advance in (True, False):
        activations = capture(skeleton, make_batches(sequences(), 2))
        block, linears = skeleton.load_block(0), skeleton.linears(0)
        finished: list[int] = []
        handle = linears[-1].module.register_forward_hook(lambda *_, finished=finished: finished.append(1))
        found[advance] = collect(0, block, linears, activations, [Gram, ColumnNorms], advance)
        handle.remove()
        calls[advance] = len(finished)
    assert calls == {True: 3, False: 1}  # the first forward runs whole: it shows which linear is the last
    for name, stats in found[True].items():
        assert torch.equal(stats[Gram].matrix, found[False][name][Gram].matrix)
        assert torch.equal(stats[ColumnNorms].squares, found[False][name][ColumnNorms].squares)
        assert stats.tokens == found[False][name].tokens == sum(map(len, sequences()))


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("lives", [0, 3, 9])
def test_a_killed_run_goes_on_to_the_same_bits(llama, tmp_path, propagation, lives):
    options = {**SOME, "propagation": propagation, "head": True}
    prune_folder(llama, tmp_path / "calm", "sparsegpt", **options)
    with pytest.raises(Killed):
        prune_folder(llama, tmp_path / "killed", watched("sparsegpt", lives), **options)
    assert not same_weights(tmp_path / "calm", tmp_path / "killed")
    again = watched("sparsegpt")
    records, _ = prune_folder(llama, tmp_path / "killed", again, **options)
    assert len(again.seen) == len(records) - lives // 7 * 7  # blocks of seven linears that were finished are not redone
    assert same_weights(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.parametrize("killed_at", ["survey", "pruning"])
@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_a_killed_survey_goes_on_to_the_same_bits(llama, tmp_path, propagation, killed_at, monkeypatch):
    options = {**SOME, "propagation": propagation, "allocation": OWL()}
    calm, _ = prune_folder(llama, tmp_path / "calm", "wanda", **options)
    assert len({record.sparsity for record in calm}) == 2
    measure, measured = OWL.measure, []

    def mortal(self, weights, stats):
        measured.append(1)
        if killed_at == "survey" and len(measured) == 2:
            raise Killed
        return measure(self, weights, stats)

    monkeypatch.setattr(OWL, "measure", mortal)
    with pytest.raises(Killed):
        prune_folder(llama, tmp_path / "killed", watched("wanda", 9 if killed_at == "pruning" else 99), **options)
    prune_folder(llama, tmp_path / "killed", "wanda", **options)
    assert len(measured) == (3 if killed_at == "survey" else 2)  # no block is measured twice
    assert same_weights(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("budget", [0, 3500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_on_disk_change_no_bit(tmp_path, propagation, budget, dtype):
    model = save_model(CONFIGS["llama"](), tmp_path / "dense", dtype)
    place = tmp_path / "place"
    place.mkdir()
    options = {"method": "sparsegpt", "propagation": propagation, "batch": 2, "head": True}
    prune_folder(model, tmp_path / "a", **options)
    hidden = HiddenStates(budget, place)
    prune_folder(model, tmp_path / "b", hidden=hidden, **options)
    bytes_of_all = 6 * 24 * 32 * dtype.itemsize
    spilled = 3 - budget // (bytes_of_all // 3)
    assert spilled > 0
    assert len(list(place.glob(f"{PREFIX}*/*"))) == spilled
    assert same_weights(tmp_path / "a", tmp_path / "b")
    hidden.close()
    assert not list(place.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_read_back_is_what_was_put_in(tmp_path, dtype):
    hidden = HiddenStates(0, tmp_path)
    tensors = [torch.randn(3, 5, 7).to(dtype), torch.randn(5, 2, 7).to(dtype).transpose(0, 1), torch.zeros(0, 4, 7)]
    for tensor in tensors:
        hidden.append(tensor)
    hidden[0] = tensors[0] = torch.full((1, 2, 7), float("nan"), dtype=dtype)  # a shorter one in its place
    for found, tensor in zip(hidden, tensors, strict=True):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    hidden.close()
    assert len(hidden) == 0
    assert not list(tmp_path.iterdir())


def test_a_budget_is_kept_to(tmp_path):
    hidden = HiddenStates(250, tmp_path)
    for _ in range(4):
        hidden.append(torch.ones(1, 5, 5))  # 100 bytes each
    assert hidden.spilled_bytes == 200
    hidden[0] = torch.ones(1, 10, 5)  # does not fit beside the second one
    assert hidden.spilled_bytes == 400
    assert [tuple(tensor.shape) for tensor in hidden] == [(1, 10, 5)] + 3 * [(1, 5, 5)]
    hidden.close()


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_inputs_that_are_not_finite_stop_every_propagation(llama, tmp_path, propagation):
    damaged = Checkpoint(llama).copy_to(tmp_path / "damaged")
    name = "model.layers.0.self_attn.v_proj.weight"
    damaged.patch({name: torch.full_like(damaged.read(name), float("inf"))})
    with pytest.raises(NumericsError, match=r"model\.layers\.0\.self_attn\.[ov]_proj"):
        prune_folder(tmp_path / "damaged", tmp_path / "out", propagation=propagation, skip=["*.v_proj"])


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_weights_that_are_not_finite_are_not_pruned_away(llama, tmp_path, method, propagation):
    """One NaN, in the very last linear, that the mask could drop."""
    damaged = Checkpoint(llama).copy_to(tmp_path / "damaged")
    name = "model.layers.1.mlp.down_proj.weight"
    weight = damaged.read(name)
    weight[3, 5] = float("nan")
    damaged.patch({name: weight})
    with pytest.raises(NumericsError, match=r"stored weights of model\.layers\.1\.mlp\.down_proj \(block 1\)"):
        prune_folder(tmp_path / "damaged", tmp_path / "out", method, propagation=propagation)
