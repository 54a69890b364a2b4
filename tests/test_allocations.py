"""Allocations: exact means whatever is measured, parity with the original OWL, and who is pruned less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocation import ALLOCATIONS
from secateur.allocation.alphapruning import AlphaPruning, spectrum, tail_index
from secateur.allocation.arithmetic import Arithmetic
from secateur.allocation.balance import bounds, scaled, shifted
from secateur.allocation.base import LinearSize
from secateur.allocation.error import MeasuredError, least_sum
from secateur.allocation.owl import OWL
from secateur.allocation.uniform import Uniform
from secateur.errors import NumericsError, UsageError
from secateur.masks import parse_pattern
from secateur.methods.wanda import Wanda
from secateur.statistics import ColumnNorms, Gram, InputStatistics


def stats_of(inputs: torch.Tensor) -> InputStatistics:
    found = InputStatistics([ColumnNorms(inputs.shape[-1]), Gram(inputs.shape[-1])])
    found.update(inputs)
    return found


def outliers(*values: float) -> list[dict[str, float]]:
    return [{"outliers": value, "mixed_outliers": value} for value in values]


def one_each(*weights: int) -> list[LinearSize]:
    return [LinearSize(f"linear{index}", index, weight) for index, weight in enumerate(weights)]


# Exact means


@st.composite
def problems(draw):
    """Blocks of one to three linears of any sizes, some with a head, and something measured for each block."""
    blocks = draw(st.integers(1, 6))
    sizes = st.integers(1, 10**9)
    linears, measured = [], []
    for block in range(blocks):
        found = outliers(draw(st.floats(0, 100)))[0]
        errors, alphas = {}, {}
        for index in range(draw(st.integers(1, 3))):
            linears.append(LinearSize(f"{block}.{index}", block, draw(sizes)))
            steps = draw(st.lists(st.floats(0, 1), min_size=9, max_size=9))
            errors[f"{block}.{index}"] = (sorted if draw(st.booleans()) else list)(steps)
            if draw(st.booleans()):
                alphas[f"{block}.{index}"] = draw(st.floats(1, 50))
        measured.append({"owl": found, "error": errors, "alphapruning": alphas})
    if draw(st.booleans()):
        linears.append(LinearSize("head", blocks, draw(sizes)))
    return linears, measured


SETTINGS = {
    "uniform": st.builds(Uniform),
    "owl": st.builds(OWL, spread=st.floats(0, 0.5)),
    "alphapruning": st.builds(AlphaPruning, spread=st.floats(0, 0.99)),
    "arithmetic": st.builds(Arithmetic, spread=st.floats(0, 0.5)),
    "error": st.builds(MeasuredError, spread=st.floats(0, 1), level=st.sampled_from(["linear", "block"])),
}


def test_every_allocation_is_tried_for_exact_means():
    assert SETTINGS.keys() == ALLOCATIONS.entries().keys()


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), problem=problems(), target=st.floats(0.01, 0.995))
def test_the_weighted_mean_is_exact_and_every_sparsity_in_bounds(name, data, problem, target):
    linears, measured = problem
    allocation = data.draw(SETTINGS[name])
    found = allocation.allocate(
        linears, target, [each.get(name, {}) for each in measured] if name in measured[0] else ()
    )
    total = sum(linear.weights for linear in linears)
    assert abs(sum(found[linear.name] * linear.weights for linear in linears) / total - target) < 1e-9
    assert all(0 <= sparsity <= max(0.99, target) + 1e-12 for sparsity in found.values())
    if name == "error":
        assert all(abs(sparsity - target) <= allocation.spread + 1e-9 for sparsity in found.values())
    if name not in ("error", "uniform"):  # one sparsity a block
        assert len({(linear.block, found[linear.name]) for linear in linears}) == len({each.block for each in linears})
    if name not in ("arithmetic", "uniform") and "head" in found:
        assert found["head"] == target


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(0.01, 3), st.integers(1, 10**6)), min_size=1, max_size=20),
    target=st.floats(0.05, 0.95),
)
def test_balancing_meets_the_mean_and_keeps_the_order(values, target):
    numbers, weights = zip(*values, strict=True)
    order = np.argsort(numbers, kind="stable")
    for found in (
        shifted(numbers, weights, target, *bounds(target)),
        scaled(numbers, weights, target, *bounds(target)),
    ):
        assert abs(np.average(found, weights=weights) - target) < 1e-12
        assert (np.diff(found[order]) >= -1e-12).all()
        assert (found >= 0).all()
        assert (found <= 0.99).all()


def test_clamped_sparsities_leave_the_others_equally_far_apart():
    found = shifted([0.0, 0.1, 0.9, 3.0], [1, 1, 1, 1], 0.5, 0.0, 0.99)
    assert found[3] == 0.99
    np.testing.assert_allclose(np.diff(found[:3]), [0.1, 0.8])


# OWL


def test_owl_formula_parity(shared):
    golden = dict(np.load(shared / "golden" / "owl_formula.npz"))
    tried = clamped = 0
    for key, density in golden.items():
        if key.endswith("_scores"):
            continue
        table, sparsity, spread = key.split("_")
        measured = outliers(*golden[f"{table}_scores"])
        linears = one_each(*[7] * len(measured))
        allocation = OWL(spread=float(spread.removeprefix("lam")))
        found = allocation.allocate(linears, float(sparsity.removeprefix("sp")), measured)
        ours = 1 - np.array([found[linear.name] for linear in linears])
        if density.min() < 0.01:  # ours are kept at 0.01, and the others pay for it
            clamped += 1
            assert ours[density.argmin()] == pytest.approx(0.01)
            assert (ours[density > 0.02] <= density[density > 0.02]).all()
            np.testing.assert_allclose(ours, np.maximum(density, 0.01), atol=0.02)
        else:
            np.testing.assert_allclose(ours, density, atol=1e-12)
        tried += 1
    assert tried >= 48
    assert 0 < clamped < tried / 4


def test_owl_measures_and_allocates_as_the_original(shared):
    golden = dict(np.load(shared / "golden" / "owl_layers.npz"))
    inputs = torch.tensor(golden["X"]).flatten(0, 1)
    stats = stats_of(inputs)
    blocks = [
        {key[4:]: torch.tensor(golden[key]) for key in golden if key.startswith(f"W_{index}_")} for index in range(6)
    ]
    linears = [
        LinearSize(f"{index}.{name}", index, w.numel()) for index, each in enumerate(blocks) for name, w in each.items()
    ]
    masks = 0
    for key in [key for key in golden if key.endswith("_density")]:
        sparsity, outlier, spread, _ = key.split("_")
        allocation = OWL(spread=float(spread.removeprefix("lam")), outlier=float(outlier.removeprefix("M")))
        measured = [allocation.measure(block, dict.fromkeys(block, stats)) for block in blocks]
        np.testing.assert_allclose(
            [each["outliers"] for each in measured], golden[key.replace("_density", "_outlier_pct")], atol=1e-9
        )
        found = allocation.allocate(linears, float(sparsity.removeprefix("sp")), measured)
        for index, block in enumerate(blocks):
            for name, weight in block.items():
                own = found[f"{index}.{name}"]
                assert own == pytest.approx(1 - golden[key][index], abs=1e-9)
                expected = golden.get(key.replace("_density", f"_wandamask_{index}_{name}"))
                if expected is not None:
                    masks += 1
                    mask = Wanda().prune(weight, stats, parse_pattern("unstructured"), own).mask
                    assert np.array_equal(~mask.numpy(), expected)
    assert masks


def test_owl_weighs_blocks_of_different_sizes():
    linears, measured = one_each(100, 100, 800), outliers(2.0, 3.0, 4.0)
    found = OWL().allocate(linears, 0.6, measured)
    sparsities = [found[f"linear{index}"] for index in range(3)]
    np.testing.assert_allclose(np.diff(sparsities), -0.08)  # the distances are the original's, the level is not
    assert np.average(sparsities, weights=[1, 1, 8]) == pytest.approx(0.6, abs=1e-12)
    assert np.mean(sparsities) > 0.62


@pytest.mark.parametrize("patterns", [("unstructured", 0.7), ("mixed 2:4", 0.5)])
def test_owl_without_differences_is_uniform(patterns):
    found = OWL().allocate(one_each(5, 6), patterns[1], outliers(1.5, 1.5), parse_pattern(patterns[0]))
    assert found == pytest.approx(dict.fromkeys(found, patterns[1]), abs=1e-12)


def test_owl_ranks_blocks_by_their_outliers():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 64, generator=generator)
    weights = [torch.randn(48, 64, generator=generator) for _ in range(3)]
    for index, share in enumerate([0.0, 0.02, 0.05]):
        weights[index][torch.rand(48, 64, generator=generator) < share] *= 30
    allocation = OWL()
    measured = [allocation.measure({"w": weight}, {"w": stats_of(inputs)}) for weight in weights]
    found = list(allocation.allocate(one_each(1, 1, 1), 0.5, measured).values())
    assert found[0] > found[1] > found[2]
    assert found[0] - found[2] == pytest.approx(0.16)


def test_owl_stays_finite_on_broken_statistics():
    stats = stats_of(torch.zeros(3, 8))
    assert OWL().measure({"w": torch.randn(4, 8)}, {"w": stats}) == {"outliers": 0.0, "mixed_outliers": 0.0}
    inputs = torch.ones(3, 8)
    whole = OWL().measure({"w": torch.eye(8)}, {"w": stats_of(inputs)})
    inputs[0, 3] = torch.inf
    broken = OWL().measure({"w": torch.eye(8)}, {"w": stats_of(inputs)})
    assert broken["outliers"] == pytest.approx(whole["outliers"] * 7 / 8)
    assert whole["outliers"] > 0


def test_owl_mixes_patterns_around_the_one_asked_for():
    values = [1.0, 2.0, 2.2, 9.0]
    linears = one_each(1, 1, 1, 1)
    found = OWL().allocate(linears, 0.5, outliers(*values), parse_pattern("mixed 2:4"))
    place = (np.array(values) - 1) / 8
    expected = np.clip(2 - np.round(2 * (place - place.mean())), 1, 3) / 4  # 3, 2 or 1 of 4 go
    assert list(found.values()) == expected.tolist()
    assert len(set(found.values())) > 1
    wide = OWL(mixed_spread=50.0).allocate(linears, 0.5, outliers(*values), parse_pattern("mixed 2:4"))
    assert set(wide.values()) == {0.25, 0.75}
    assert wide["linear3"] == 0.25


# Patterns


@pytest.mark.parametrize("allocation", [OWL(), Arithmetic()])
def test_one_pattern_for_all_refuses_different_sparsities(allocation):
    with pytest.raises(UsageError, match="Use the pattern 'mixed 2:4'"):
        allocation.allocate(one_each(4, 4), 0.5, outliers(1.0, 2.0), parse_pattern("2:4"))


def test_one_pattern_for_all_takes_equal_sparsities():
    assert set(Uniform().allocate(one_each(4, 4), 0.5, (), parse_pattern("2:4")).values()) == {0.5}
    assert set(Arithmetic(0.0).allocate(one_each(4, 4), 0.5, (), parse_pattern("2:4")).values()) == {0.5}


@pytest.mark.parametrize("pattern", ["mixed 2:4", "mixed 4:8", "mixed 1:4"])
def test_mixed_patterns_get_sparsities_they_can_express(pattern):
    parsed = parse_pattern(pattern)
    assert parsed.group is not None
    found = Arithmetic(0.45).allocate(one_each(*[1] * 9), parsed.sparsity or 0, (), parsed)
    for sparsity in found.values():
        assert parsed.at(sparsity).sparsity == sparsity < 1
    assert len(set(found.values())) > 1


# AlphaPruning


@pytest.mark.parametrize("alpha", [2.0, 3.0, 5.0])
def test_the_tail_index_of_a_power_law_is_found(alpha):
    ranks = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    values = (1 - ranks) ** (-1 / (alpha - 1))  # quantiles of p(x) ~ x^-alpha from 1 on: the peak is at the start
    assert tail_index(values) == pytest.approx(alpha, rel=0.05)
    assert tail_index(values * 1e-6) == pytest.approx(tail_index(values), rel=1e-6)


def test_what_lies_below_the_peak_does_not_count():
    ranks = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tail = (1 - ranks) ** -0.5
    noise = torch.logspace(-6, -0.01, 500, dtype=torch.float64)  # few in each bin of log x
    assert tail_index(torch.cat([noise, tail])) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_the_spectrum_is_the_squared_singular_values(shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    weight[:, 1] = weight[:, 0]
    if shape[0] > shape[1]:
        weight = weight[:, :40]
    expected = torch.linalg.svdvals(weight.double()).square().flip(0)
    torch.testing.assert_close(spectrum(weight), expected[expected > 1e-8], rtol=1e-8, atol=0)


def test_alphapruning_prunes_heavy_tails_less():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 128, generator=generator))[0] for n in (160, 128))
    weights = [left @ torch.diag(torch.arange(1, 129).float() ** -power) @ right.T for power in (0.2, 1.0, 0.5)]
    allocation = AlphaPruning()
    measured = [allocation.measure({f"linear{index}": weight}, {}) for index, weight in enumerate(weights)]
    found = list(allocation.allocate(one_each(1, 1, 1), 0.5, measured).values())
    assert found[0] > found[2] > found[1]
    assert found[0] / found[1] == pytest.approx(1.3 / 0.7)


def test_alphapruning_leaves_matrices_without_a_tail_out():
    allocation = AlphaPruning()
    assert allocation.measure({"zero": torch.zeros(8, 8), "equal": torch.eye(8)}, {}) == {}
    found = allocation.allocate(one_each(3, 3, 3), 0.6, [{"linear0": 2.0}, {}, {"linear2": 4.0}])
    assert found["linear1"] == 0.6
    assert found["linear0"] < 0.6 < found["linear2"]
    with pytest.raises(NumericsError, match="not all finite"):
        allocation.measure({"w": torch.full((4, 4), torch.nan)}, {})


# Measured error


def test_least_sum_solves_quadratic_curves_exactly():
    # For E = a s^2 of equal weights, equal slopes mean that s is proportional to 1/a.
    scale, grid = np.array([1.0, 2.0, 4.0]), np.linspace(0, 1, 21)[1:-1]
    found = least_sum([a * grid**2 for a in scale], list(scale), np.ones(3), 0.3, 0.0, 0.99)
    expected = 0.9 / scale / (1 / scale).sum()
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("spread", [0.05, 0.2, 1.0])
def test_no_small_trade_between_two_linears_would_lower_the_sum(spread):
    generator = np.random.default_rng(0)
    powers, weights = generator.uniform(1.5, 6, 8), generator.integers(1, 9, 8).astype(float)
    grid = np.linspace(0, 1, 41)[1:-1]
    low, high = bounds(0.6, spread)
    found = least_sum([grid**power for power in powers], [1.0] * 8, weights, 0.6, low, high)
    total = lambda s: (s**powers).sum()  # noqa: E731
    for give in range(8):
        for take in range(8):
            other = found.copy()
            other[give] -= 0.02 / weights[give]
            other[take] += 0.02 / weights[take]
            if other.min() >= low and other.max() <= high:
                assert total(other) > total(found) - 1e-4


def test_equal_curves_get_the_target_whatever_their_shape():
    for curve in (np.linspace(0, 1, 21)[1:-1], np.linspace(0, 1, 21)[1:-1] ** 3, np.zeros(19), np.ones(19)):
        found = least_sum([curve] * 4, [1.0] * 4, np.ones(4), 0.53, 0.3, 0.7)
        np.testing.assert_allclose(found, 0.53, atol=1e-9)


def test_curves_that_hardly_differ_get_sparsities_that_hardly_differ():
    grid = np.linspace(0, 1, 21)[1:-1]  # straight lines: the sum itself would prune the lower one all the way
    found = least_sum([grid, grid * (1 + 1e-6)], [1.0, 1.0 + 1e-6], np.ones(2), 0.53, 0.3, 0.7)
    np.testing.assert_allclose(found, 0.53, atol=0.01)
    assert found[0] > found[1]


@pytest.fixture
def two_linears():
    """One linear whose inputs are all alike, and one with few inputs that matter."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(32, 48, generator=generator) for name in ("hard", "easy")}
    inputs = torch.randn(300, 48, generator=generator)
    return weights, {"hard": stats_of(inputs), "easy": stats_of(inputs * torch.logspace(1, -2, 48))}


def test_errors_are_those_of_the_outputs(two_linears):
    weights, stats = two_linears
    measured = MeasuredError(step=0.25, rows=0).measure(weights, stats)
    for name, errors in measured.items():
        values, vectors = torch.linalg.eigh(stats[name][Gram].matrix.double())
        root = vectors * values.clamp(min=0).sqrt()
        for part, error in enumerate(errors, 1):
            pruned = Wanda().prune(weights[name], stats[name], parse_pattern("unstructured"), part / 4).weight
            expected = ((pruned - weights[name]).double() @ root).square().sum()
            expected /= (weights[name].double() @ root).square().sum()
            assert error == pytest.approx(expected.item(), rel=1e-4)
        assert 0 < errors[0] < errors[1] < errors[2] < 1


def test_what_hurts_more_is_pruned_less(two_linears):
    weights, stats = two_linears
    linears = [LinearSize(name, 0, weight.numel()) for name, weight in weights.items()]
    measured = [MeasuredError().measure(weights, stats)]
    found = MeasuredError().allocate(linears, 0.5, measured)
    assert found["hard"] < 0.45 < 0.55 < found["easy"]
    assert MeasuredError(level="block").allocate(linears, 0.5, measured) == pytest.approx({"hard": 0.5, "easy": 0.5})


def test_a_sample_of_rows_measures_nearly_the_same(two_linears):
    generator = torch.Generator().manual_seed(1)
    weights, stats = {"easy": torch.randn(2000, 48, generator=generator)}, two_linears[1]
    whole, part = (MeasuredError(rows=rows, step=0.1).measure(weights, stats)["easy"] for rows in (0, 400))
    np.testing.assert_allclose(part, whole, rtol=0.05)
    assert part != whole


def test_measuring_with_a_method_needs_its_statistics():
    assert MeasuredError().statistics() == (Gram, ColumnNorms)
    assert MeasuredError(method={"name": "sparsegpt", "block": 64}).statistics() == (Gram,)


def test_a_method_that_updates_is_measured_with_its_updates():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=generator) + 2 * torch.eye(64)
    inputs = torch.randn(300, 64, generator=generator) @ mix * torch.logspace(-1, 1, 64)
    weights, stats = {"w": torch.randn(32, 64, generator=generator)}, {"w": stats_of(inputs)}
    plain, updated = (MeasuredError(method=name, step=0.25).measure(weights, stats) for name in ("wanda", "sparsegpt"))
    assert updated["w"][1] < plain["w"][1]


def test_inputs_that_are_always_zero_have_no_error():
    measured = MeasuredError(step=0.25).measure({"w": torch.randn(4, 8)}, {"w": stats_of(torch.zeros(3, 8))})
    assert measured == {"w": [0.0, 0.0, 0.0]}
    with pytest.raises(NumericsError, match="not finite"):
        MeasuredError(step=0.25).measure({"w": torch.randn(4, 8)}, {"w": stats_of(torch.full((3, 8), torch.inf))})


# Arithmetic


def test_arithmetic_rises_in_equal_steps():
    found = list(Arithmetic(0.12).allocate(one_each(5, 5, 5, 5), 0.6).values())
    np.testing.assert_allclose(found, [0.48, 0.56, 0.64, 0.72])


def test_arithmetic_narrows_rather_than_clamps():
    found = list(Arithmetic(0.5).allocate(one_each(1, 1, 1, 1, 4), 0.9).values())
    assert max(found) == pytest.approx(0.99)
    np.testing.assert_allclose(np.diff(found), np.diff(found)[0])
    assert np.diff(found)[0] > 0.01


# Settings


@pytest.mark.parametrize(
    ("name", "given_"),
    [
        ("owl", {"spread": -0.1}),
        ("owl", {"outlier": 0.0}),
        ("owl", {"mixed_outlier": float("nan")}),
        ("owl", {"mixed_spread": -1.0}),
        ("alphapruning", {"spread": 1.0}),
        ("arithmetic", {"spread": 0.6}),
        ("error", {"spread": -0.1}),
        ("error", {"step": 0.0}),
        ("error", {"rows": -1}),
        ("error", {"level": "matrix"}),
        ("error", {"method": "wandaa"}),
        ("error", {"method": {"name": "sparsegpt", "block": 0}}),
    ],
)
def test_settings_out_of_range_are_refused_in_a_sentence(name, given_):
    with pytest.raises(UsageError) as raised:
        ALLOCATIONS.load(name)(**given_)
    assert str(raised.value).rstrip()[-1] in ".?"


def test_the_listing_says_what_the_docstrings_say():
    for name, entry in ALLOCATIONS.entries().items():
        assert (ALLOCATIONS.load(name).__doc__ or "").splitlines()[0] == entry.summary
