"""What models make of single sequences, against slow and plain computations of the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from conftest import save_model, sequences
from secateur.calibration.sample import Sample
from secateur.errors import NumericsError
from secateur.models.loading import load_model, load_tokenizer
from secateur.models.measures import gradients as gradients_module
from secateur.models.measures import projection
from secateur.models.measures.gradients import adapter_gradients, adapter_start
from secateur.models.measures.linears import block_linears
from secateur.models.measures.pooled import pooled_inputs
from secateur.models.measures.projection import project
from secateur.models.measures.surprise import min_k
from secateur.pipeline.context import ModelContext
from secateur.pipeline.recipe import Recipe


@pytest.fixture(scope="module")
def model(llama):
    return load_model(llama)


@pytest.fixture
def broken(llama):
    found = load_model(llama)
    with torch.no_grad():
        found.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    return found


def slow_min_k(model, ids: list[int], share: float, plus: bool) -> float:
    """Token by token, in fp64, from the definition."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    values = []
    for position in range(1, len(ids)):
        probabilities = torch.softmax(logits[position - 1], 0).tolist()
        own = np.log(probabilities[ids[position]])
        mean = sum(p * np.log(p) for p in probabilities)
        variance = sum(p * (np.log(p) - mean) ** 2 for p in probabilities)
        values.append((own - mean) / variance**0.5 if plus else own)
    kept = sorted(values)[: max(1, int(share * len(values)))]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_min_k_is_the_mean_of_the_lowest_values(model, share, plus):
    data = sequences()
    expected = [slow_min_k(model, ids, share, plus) for ids in data]
    assert min_k(model, data, share, plus) == pytest.approx(expected, rel=1e-4)


def test_min_k_plus_of_what_the_model_draws_is_near_zero_and_of_what_it_excludes_far_below(model):
    with torch.no_grad():
        likely = [7]
        for _ in range(12):
            likely.append(int(model(torch.tensor([likely])).logits[0, -1].argmax()))
        logits = model(torch.tensor([likely])).logits[0]
    unlikely = [7, *logits.argmin(dim=-1)[:-1].tolist()]
    high, low = min_k(model, [likely, unlikely], 0.5, True)
    assert high > 0 > low


def test_min_k_of_masked_tokens_and_single_tokens(model):
    from secateur.models.measures.surprise import _values

    logits = torch.tensor([[1.0, 2.0, float("-inf"), 0.5]])
    plain = torch.tensor([[1.0, 2.0, 0.5]])
    assert _values(logits, torch.tensor([1]), True).item() == pytest.approx(
        _values(plain, torch.tensor([1]), True).item()
    )
    assert np.isnan(min_k(model, [[5]], 0.5, True)[0])


def test_measures_refuse_outputs_that_are_not_finite(broken):
    data = sequences()[:2]
    with pytest.raises(NumericsError, match="not finite on this text"):
        min_k(broken, data, 0.5, True)
    with pytest.raises(NumericsError, match="not finite on this text"):
        adapter_gradients(broken, data, 8, 0, False)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[3, 5] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.1\.self_attn\.q_proj are not finite"):
        pooled_inputs(broken, data, 8, 0)


def test_projection_keeps_inner_products_and_does_not_care_for_slices(monkeypatch):
    rows = torch.randn(5, 700, generator=torch.Generator().manual_seed(1))
    found = project(rows, 4096, 0, "x")
    assert torch.allclose(found @ found.T / 700, rows @ rows.T / 700, atol=0.1)
    unit = project(torch.eye(3), 64, 0, "x")
    assert unit.abs().unique().tolist() == [0.125]
    assert not torch.equal(project(rows, 16, 0, "x"), project(rows, 16, 0, "y"))
    assert not torch.equal(project(rows, 16, 0, "x"), project(rows, 16, 1, "x"))
    monkeypatch.setattr(projection, "ENTRIES", 16 * 100)
    first = project(torch.eye(100), 16, 0, "x")
    matrix = project(torch.eye(700), 16, 0, "x")
    assert torch.allclose(matrix[:100], first)
    assert torch.allclose(rows @ matrix, project(rows, 16, 0, "x"), atol=1e-4)
    assert len({tuple(row) for row in matrix[:200].tolist()}) > 190  # slices are not copies of each other


def slow_pool(model, ids: list[int], dimensions: int, seed: int) -> torch.Tensor:
    """The mean inputs of one sequence, alone in its batch, by linear; those that share them once."""
    seen, found, handles = [], torch.zeros(dimensions), []

    def before(name):
        def hook(module, args):
            nonlocal found
            if not any(args[0] is other for other in seen):
                seen.append(args[0])
                mean = args[0].reshape(-1, args[0].shape[-1])[: len(ids)].double().mean(dim=0)
                found = found + project((mean / mean.norm()).float()[None], dimensions, seed, name)[0]

        return hook

    for linear in block_linears(model):
        handles.append(linear.module.register_forward_pre_hook(before(linear.name)))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found


def test_pooled_inputs_leave_padding_out(any_model):
    loaded = load_model(any_model)
    data = sequences()
    found = pooled_inputs(loaded, data, 32, 3)
    assert found.shape == (6, 32)
    assert found.dtype == np.float32
    for index, ids in enumerate(data):
        assert np.allclose(found[index], slow_pool(loaded, ids, 32, 3).numpy(), atol=1e-4)
    assert not any(module._forward_pre_hooks for module in loaded.modules())


def explicit_lora(model, ids: list[int], seed: int) -> dict[str, torch.Tensor]:
    """The gradients of real adapters, put into the model one sequence at a time, by autograd."""
    ups, handles = {}, []
    for linear in block_linears(model):
        down = adapter_start(linear, seed)
        ups[linear.name] = up = torch.zeros(linear.outputs, len(down), requires_grad=True)

        def after(module, args, output, down=down, up=up):
            return output + (args[0] @ down.T) @ up.T

        handles.append(linear.module.register_forward_hook(after))
    logits = model(torch.tensor([ids])).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return {name: up.grad.flatten() for name, up in ups.items()}


def projected(grads: dict[str, torch.Tensor], dimensions: int, seed: int) -> np.ndarray:
    return sum(project(grad[None], dimensions, seed, name)[0] for name, grad in grads.items()).numpy()


def test_adapter_gradients_are_those_of_real_adapters(any_model):
    loaded = load_model(any_model)
    data = sequences()
    found = adapter_gradients(loaded, data, 48, 2, adam=False)
    explicit = [explicit_lora(loaded, ids, 2) for ids in data]
    assert all(grad.abs().max() > 0 for grad in explicit[0].values())
    for index, grads in enumerate(explicit):
        expected = projected(grads, 48, 2)
        assert np.allclose(found[index], expected, atol=1e-4 * np.abs(expected).max())


def test_adam_steps_use_the_moments_of_the_pool(model):
    data = sequences()
    found = adapter_gradients(model, data, 48, 0, adam=True)
    explicit = [explicit_lora(model, ids, 0) for ids in data]
    for index, grads in enumerate(explicit):
        steps = {}
        for name, grad in grads.items():
            every = torch.stack([one[name] for one in explicit])
            first, second = every.mean(dim=0), (every**2).mean(dim=0)
            steps[name] = (0.9 * first + 0.1 * grad) / (0.999 * second + 0.001 * grad**2 + 1e-8).sqrt()
        expected = projected(steps, 48, 0)
        assert np.allclose(found[index], expected, atol=1e-3 * np.abs(expected).max())


def test_the_moments_come_from_an_even_part_of_a_large_pool(model, monkeypatch):
    data = sequences(8)
    monkeypatch.setattr(gradients_module, "MOMENT_SAMPLES", 4)
    part = gradients_module._moments(gradients_module._Adapters(model, 0), data, 3)
    monkeypatch.setattr(gradients_module, "MOMENT_SAMPLES", 64)
    same = gradients_module._moments(gradients_module._Adapters(model, 0), data[::2], 100)
    for name, (first, second) in part.items():
        assert torch.allclose(first, same[name][0], atol=1e-6)
        assert torch.allclose(second, same[name][1], atol=1e-6)


@pytest.mark.parametrize("adam", [False, True])
def test_lots_and_batches_change_nothing(model, monkeypatch, adam):
    data = sequences()
    whole = adapter_gradients(model, data, 16, 0, adam)
    monkeypatch.setattr(gradients_module, "HELD_BYTES", 1)
    assert np.allclose(adapter_gradients(model, data, 16, 0, adam), whole, atol=1e-4 * np.abs(whole).max())


def test_gradients_leave_the_model_as_it_was(llama):
    loaded = load_model(llama)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    asking = [name for number, (name, _) in enumerate(loaded.named_parameters()) if number % 2]
    for name, parameter in loaded.named_parameters():
        parameter.requires_grad_(name in asking)
    with torch.inference_mode():
        adapter_gradients(loaded, sequences(), 8, 0, adam=True)
    assert [name for name, parameter in loaded.named_parameters() if parameter.requires_grad] == asking
    assert all(parameter.grad is None for parameter in loaded.parameters())
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert not any(module._forward_hooks for module in loaded.modules())


def test_experts_in_one_tensor_are_left_out(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(vocab_size=300, num_hidden_layers=2, num_local_experts=4, **sizes)
    mixture = load_model(save_model(config, tmp_path))
    data = sequences()[:3]
    together = adapter_gradients(mixture, data, 16, 0, adam=False)
    assert np.allclose(together[1], adapter_gradients(mixture, data[1:2], 16, 0, adam=False)[0], rtol=1e-3, atol=1e-6)
    assert np.abs(together).max(axis=1).min() > 0
    expected = slow_pool(mixture, data[1], 16, 0).numpy()
    assert np.allclose(pooled_inputs(mixture, data, 16, 0)[1], expected, atol=1e-4)


def test_the_context_measures_each_sample_once(llama, monkeypatch):
    context = ModelContext(Recipe(model=str(llama), seed=5, device="cpu"), llama, load_tokenizer(llama))
    samples = [Sample(tuple(ids)) for ids in sequences()]
    first = context.min_k(samples[:4], 0.5), context.activations(samples[:4], 8)
    grads = context.gradients(samples, 8, True), context.gradients(samples[2:], 8, False)
    asked = []
    forward = type(context.model).forward
    monkeypatch.setattr(
        type(context.model),
        "forward",
        lambda self, input_ids, **rest: (asked.append(len(input_ids)), forward(self, input_ids, **rest))[1],
    )
    assert context.min_k(samples[2:], 0.5)[:2] == first[0][2:]
    assert sum(asked) == 2
    assert np.array_equal(context.activations(samples[1:3], 8), first[1][1:3])
    assert np.array_equal(context.gradients(samples, 8, True), grads[0])
    assert np.array_equal(context.gradients(samples[4:3:-1], 8, False)[0], grads[1][2])
    assert sum(asked) == 2
    assert not np.array_equal(context.gradients(samples[:3], 8, True), grads[0][:3])
