"""The forecast of memory and time: what it counts, how it grows, and where it is printed. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from conftest import CONFIGS, save_model
from secateur.allocation.owl import OWL
from secateur.allocation.uniform import Uniform
from secateur.cli.check import check
from secateur.cli.common import Output
from secateur.masks import parse_pattern
from secateur.methods import METHODS
from secateur.methods.cost import UNKNOWN
from secateur.models.batches import make_batches
from secateur.models.capture import capture
from secateur.models.skeleton import Skeleton
from secateur.pruning.collect import collect
from secateur.pruning.forecast import Forecast, forecast
from secateur.pruning.plan import Propagation, PruningPlan, plan_pruning
from secateur.pruning.rates import Rates
from secateur.pruning.trace import trace_blocks
from secateur.pruning.workload import statistics_bytes
from secateur.statistics import Gram


class _Same(dict):
    """Every linear of every shape at the same rate a weight and row."""

    def __missing__(self, key):
        return 1e-9 * (key[0] * key[1] if isinstance(key, tuple) else key)


RATES = Rates(linear=_Same(), statistics=_Same())


def planned(model: Path, method: str = "wanda", **options) -> tuple[Skeleton, PruningPlan]:
    skeleton = Skeleton(model)
    allocation = options.pop("allocation", Uniform())
    pattern = parse_pattern("unstructured")
    return skeleton, plan_pruning(skeleton, METHODS.load(method)(), pattern, 0.5, allocation, **options)


def told(
    model: Path,
    method="wanda",
    propagation: Propagation = "block",
    samples=8,
    length=24,
    batch=2,
    budget=None,
    **options,
) -> Forecast:
    skeleton, plan = planned(model, method, **options)
    return forecast(skeleton, plan, propagation, [length] * samples, batch, budget, model, RATES)


def beside_process(found: Forecast) -> int:
    return found.peak_bytes - found.memory["process"]


def wider(tmp_path: Path, **changes) -> Path:
    config = CONFIGS["llama"]()
    for name, value in changes.items():
        setattr(config, name, value)
    return save_model(config, tmp_path / "-".join(map(str, changes.values())))


@pytest.mark.parametrize("method", list(METHODS.entries()))
def test_parts_sum_to_the_whole_and_are_positive(llama, method):
    found = told(llama, method)
    assert found.seconds == pytest.approx(sum(found.time.values()))
    assert found.peak_bytes == sum(found.memory.values())
    assert all(part > 0 for part in [*found.time.values(), *found.memory.values()])
    assert {"solve", "saving", "verifying"} <= found.time.keys()
    assert ("forward" in found.time) == (method != "magnitude")


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
def test_more_samples_and_longer_ones_take_more(llama, propagation):
    few, many = told(llama, propagation=propagation), told(llama, propagation=propagation, samples=16)
    longer = told(llama, propagation=propagation, length=48)
    for more in (many, longer):
        assert more.time["forward"] > few.time["forward"]
        assert more.time["statistics"] == pytest.approx(2 * few.time["statistics"])
        assert more.time["solve"] == few.time["solve"]
        assert beside_process(more) > beside_process(few)


def test_larger_models_take_more(llama, tmp_path):
    small = told(llama, "sparsegpt")
    for changes in ({"hidden_size": 64}, {"intermediate_size": 256}):
        large = told(wider(tmp_path, **changes), "sparsegpt")
        assert beside_process(large) > beside_process(small)
        assert all(large.time[part] > small.time[part] for part in ("forward", "statistics", "solve", "saving"))
    deep = told(wider(tmp_path, num_hidden_layers=4), "sparsegpt")
    assert deep.time["solve"] == pytest.approx(2 * small.time["solve"])
    assert beside_process(deep) == pytest.approx(beside_process(small), rel=0.01)  # one block at a time


def test_one_run_of_each_block_is_less_than_two(llama):
    twice, once, dense = (told(llama, propagation=name) for name in ("block", "linear", "dense"))
    assert twice.time["forward"] > once.time["forward"] > dense.time["forward"]
    assert "held between linears" in once.memory
    assert "held between linears" not in twice.memory


def test_a_budget_bounds_the_hidden_states(llama):
    free, bound = told(llama, samples=64), told(llama, samples=64, budget=10_000)
    assert bound.peak_bytes < free.peak_bytes
    assert bound.memory["hidden states"] == 10_000
    assert bound.time["hidden states on disk"] > 0
    assert "hidden states on disk" not in free.time


def test_a_survey_and_a_head_cost_more(tmp_path):
    model = save_model(CONFIGS["llama"](), tmp_path)
    plain = told(model)
    assert told(model, allocation=OWL()).time["survey"] > 0
    assert "survey" not in plain.time
    assert told(model, head=True).time["solve"] > plain.time["solve"]
    assert told(model, skip=["*.down_proj"]).time["solve"] < plain.time["solve"]


def test_no_data_no_forward(llama):
    skeleton, plan = planned(llama, "magnitude")
    found = forecast(skeleton, plan, "block", [], 4, None, llama, RATES)
    assert not {"forward", "statistics"} & found.time.keys()
    assert not {"hidden states", "statistics"} & found.memory.keys()


def test_the_trace_sees_what_the_run_sees(any_model):
    """Order, rows and sharing of inputs, against the hooks of a real run."""
    skeleton = Skeleton(any_model)
    traced = trace_blocks(skeleton, 2, 24)
    activations = capture(skeleton, make_batches([[5] * 24] * 2, 2))
    linears = skeleton.linears(0)
    real = collect(0, skeleton.load_block(0), linears, activations, [Gram], advance=False)
    assert [one.name for one in traced[0].linears] == list(real)  # as they are called, not as they are declared
    assert all(one.rows == 48 for one in traced[0].linears)
    for one in traced[0].linears:
        for other in traced[0].linears:
            assert (one.source == other.source) == (real[one.name] is real[other.name])
    held = {id(stats): stats[Gram].sums()[0].nbytes for stats in real.values()}
    assert statistics_bytes(traced[0].linears, [Gram]) == sum(held.values())
    assert traced[0].peak > 2 * 48 * 32 * 4
    assert traced[0].flops == 2 * 2 * 24 * 24 * 32  # Q K^T and its product with V, half of each for the causal mask


def test_experts_see_their_share(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    block = trace_blocks(Skeleton(save_model(config, tmp_path)), 2, 24)[0]
    experts = [one for one in block.linears if ".experts." in one.name]
    assert len(experts) == 12
    assert all(one.rows == 24 for one in experts)
    assert len({one.source for one in experts}) == 8  # gate and up share


def test_a_model_that_cannot_run_without_storage_is_told_by_names(llama, monkeypatch):
    skeleton = Skeleton(llama)
    expected = trace_blocks(skeleton, 2, 24)[0]
    monkeypatch.setattr("secateur.pruning.rehearsal._inputs", lambda *_: iter([]))
    found = trace_blocks(skeleton, 2, 24)[0]
    assert [(one.name, one.rows) for one in found.linears] == [(one.name, one.rows) for one in expected.linears]
    assert statistics_bytes(found.linears, [Gram]) == statistics_bytes(expected.linears, [Gram])


def test_every_method_has_a_cost_of_its_own():
    assert all(METHODS.load(name).own_cost != UNKNOWN for name in METHODS.entries())


@pytest.mark.parametrize("method", ["dsnot", "reconstruct", "sparseswaps"])
def test_a_method_that_starts_from_another_costs_both(method):
    kind = METHODS.load(method)
    cheap, dear = kind(initial="magnitude").cost(), kind(initial="sparsegpt").cost()
    assert cheap.shared_flops < dear.shared_flops == METHODS.load("sparsegpt")().cost().shared_flops


def test_rates_are_measured_on_the_spot(llama, tmp_path):
    skeleton, plan = planned(llama, "sparsegpt")
    found = forecast(skeleton, plan, "linear", [24] * 4, 2, None, tmp_path / "not" / "there")
    assert found.seconds > 0
    assert found.peak_bytes > found.memory["process"] > 50 * 2**20
    assert not list(tmp_path.iterdir())
    assert torch.is_inference_mode_enabled() is False


def test_check_prints_the_forecast(llama, text_file, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {llama}\npruning: {{allocation: owl}}\nevaluation: {{enabled: false}}\n"
        f"calibration: {{source: {text_file}, samples: 4, length: 16}}\n"
    )
    assert check(str(recipe), common=Output(store=tmp_path / "store", verbose=True)) == 0
    printed = capsys.readouterr().out
    assert "expected     pruning alone: peak memory about " in printed
    assert "(this machine, measured now); making the calibration set comes on top" in printed
    assert "  hidden states " in printed
    assert "  survey " in printed
    assert "to prune     14 linears" in printed
    assert check(str(recipe), common=Output(store=tmp_path / "store", json=True)) == 0
    found = json.loads(capsys.readouterr().out)["expected"]
    assert found["peak_bytes"] == sum(found["memory"].values())
    assert not (tmp_path / "store").exists()
