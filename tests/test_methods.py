"""Methods: properties, and parity with the original programs on their own inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.errors import NumericsError, UnknownNameError, UsageError
from secateur.masks import parse_pattern
from secateur.methods import METHODS
from secateur.methods.magnitude import Magnitude
from secateur.methods.solve import factorise
from secateur.methods.sparsegpt import SparseGPT
from secateur.methods.wanda import Wanda
from secateur.statistics import ColumnNorms, Gram, InputStatistics, Moments

PATTERNS = {"u50": ("unstructured", 0.5), "u60": ("unstructured", 0.6), "2_4": ("2:4", 0.5), "4_8": ("4:8", 0.5)}
ROUND_EVERY_ROW = {"wanda", "ria", "dsnot", "reconstruct", "sparseswaps"}  # others round the whole matrix down
SMALL = Path(__file__).parent / "fixtures" / "golden_small.npz"


def stats_of(inputs: torch.Tensor) -> InputStatistics:
    found = InputStatistics(kind(inputs.shape[-1]) for kind in (ColumnNorms, Gram, Moments))
    for sample in inputs:
        found.update(sample)
    return found


def cases(weight, inputs, golden):
    """Every pattern the original programs were run with on this matrix, as ``(name, pattern, sparsity)``."""
    return (
        weight,
        stats_of(inputs),
        [
            (name, parse_pattern(text), sparsity)
            for name, (text, sparsity) in PATTERNS.items()
            if f"wanda_{name}_mask" in golden
        ],
    )


def small(shape: str) -> dict[str, np.ndarray]:
    """A committed matrix: its masks are packed bits."""
    found = {key.split(".", 1)[1]: value for key, value in np.load(SMALL).items() if key.startswith(shape + ".")}
    size = found["W"].shape
    unpack = lambda bits: np.unpackbits(bits)[: size[0] * size[1]].reshape(size).astype(bool)  # noqa: E731
    return {key: unpack(value) if key.endswith("_mask") else value for key, value in found.items()}


def check_parity(golden: dict[str, np.ndarray]) -> None:
    weight, inputs = torch.tensor(golden["W"]), torch.tensor(golden["X"])
    weight, stats, patterns = cases(weight, inputs, golden)
    assert patterns
    for name, pattern, sparsity in patterns:
        wanda = Wanda().prune(weight, stats, pattern, sparsity)
        assert np.array_equal(~wanda.mask.numpy(), golden[f"wanda_{name}_mask"]), name
        assert torch.equal(wanda.weight, weight * wanda.mask)
        # The original's `<=` prunes one weight more than asked; so does ours when told to.
        magnitude = Magnitude(inclusive_threshold=True).prune(weight, stats, pattern, sparsity)
        assert np.array_equal(~magnitude.mask.numpy(), golden[f"magnitude_{name}_mask"]), name
        exact = Magnitude().prune(weight, stats, pattern, sparsity)
        extra = 0 if pattern.structured else 1
        assert (exact.mask.numpy() == golden[f"magnitude_{name}_mask"]).sum() == extra
        found = SparseGPT(inclusive_threshold=True).prune(weight, stats, pattern, sparsity)
        assert np.array_equal(~found.mask.numpy(), golden[f"sparsegpt_{name}_mask"]), name
        np.testing.assert_allclose(found.weight.numpy(), golden[f"sparsegpt_{name}_W"], rtol=0, atol=1e-6)
    for key, method in {
        "sparsegpt_u50_bs64": SparseGPT(block=64, inclusive_threshold=True),
        "sparsegpt_u50_damp0.1": SparseGPT(damping=0.1, inclusive_threshold=True),
    }.items():
        if f"{key}_W" in golden:
            found = method.prune(weight, stats, parse_pattern("unstructured"), 0.5)
            np.testing.assert_allclose(found.weight.numpy(), golden[f"{key}_W"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", ["s33x77", "s48x200"])
def test_parity_with_the_original_programs(shape):
    check_parity(small(shape))


@pytest.mark.parametrize("shape", ["s96x256", "s128x128", "s160x131", "s256x384"])
def test_parity_with_the_original_programs_on_larger_matrices(shared, shape):
    with np.load(shared / "golden" / f"matrix_{shape}.npz") as golden:
        check_parity(dict(golden))


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator)
    mix = torch.randn(64, 64, generator=generator) + 2 * torch.eye(64)
    return weight, torch.randn(4, 100, 64, generator=generator) @ mix * torch.logspace(-1, 1, 64)


@pytest.mark.parametrize("name", list(METHODS.entries()))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "1:4"])
def test_every_method_gives_exact_counts_and_zeros(problem, name, pattern):
    weight, inputs = problem
    parsed = parse_pattern(pattern)
    sparsity = parsed.sparsity or 0.37
    before = weight.clone()
    pruned = METHODS.load(name)().prune(weight, stats_of(inputs), parsed, sparsity)
    assert torch.equal(weight, before)
    assert (pruned.weight[~pruned.mask] == 0).all()
    assert (pruned.weight[pruned.mask] != 0).all()
    if parsed.structured:
        assert (pruned.mask.reshape(-1, parsed.group).sum(dim=1) == parsed.keep).all()
    else:
        slack = weight.shape[0] if name in ROUND_EVERY_ROW else 1
        assert 0 <= weight.numel() * sparsity - (~pruned.mask).sum() < slack


def test_wanda_on_inputs_of_equal_norm_is_magnitude_per_row(problem):
    weight, _ = problem
    inputs = torch.eye(64)[None] * 3
    mask = Wanda().prune(weight, stats_of(inputs), parse_pattern("unstructured"), 0.5).mask
    assert torch.equal(mask, weight.abs() > weight.abs().kthvalue(32, dim=1, keepdim=True).values)


def test_wanda_does_not_mind_the_scale_or_the_order_of_inputs(problem):
    weight, inputs = problem
    pattern, order = parse_pattern("unstructured"), torch.randperm(64)
    mask = Wanda().prune(weight, stats_of(inputs), pattern, 0.5).mask
    assert torch.equal(mask, Wanda().prune(weight, stats_of(inputs * 4), pattern, 0.5).mask)
    permuted = Wanda().prune(weight[:, order], stats_of(inputs[..., order]), pattern, 0.5).mask
    assert torch.equal(mask[:, order], permuted)


def test_sparsegpt_errs_less_than_wanda_and_wanda_less_than_magnitude(problem):
    weight, inputs = problem
    stats, pattern = stats_of(inputs), parse_pattern("unstructured")
    rows = inputs.reshape(-1, 64)

    def error(method):
        return ((method.prune(weight, stats, pattern, 0.5).weight - weight) @ rows.T).square().sum()

    assert error(SparseGPT()) < error(Wanda()) < error(Magnitude())


def test_sparsegpt_on_independent_inputs_updates_nothing(problem):
    weight, _ = problem
    pruned = SparseGPT().prune(weight, stats_of(torch.eye(64)[None]), parse_pattern("2:4"), 0.5)
    torch.testing.assert_close(pruned.weight, weight * pruned.mask)


def test_inputs_that_are_always_zero_lose_their_weights(problem):
    weight, inputs = problem
    inputs[..., [3, 40]] = 0
    pruned = SparseGPT().prune(weight, stats_of(inputs), parse_pattern("unstructured"), 0.5)
    assert (pruned.weight[:, [3, 40]] == 0).all()
    assert pruned.notes["dead_inputs"] == 2
    assert pruned.weight.isfinite().all()


def test_a_singular_gram_is_damped_up_a_ladder_and_says_so():
    gram = torch.ones(32, 32)
    found = factorise(gram, 0.0)
    assert found.damping >= 0.01
    damped = gram + found.damping * torch.eye(32)
    torch.testing.assert_close(found.upper @ found.upper.T, damped, atol=1e-5, rtol=0)
    assert torch.equal(found.upper, found.upper.triu())


def test_a_gram_that_cannot_be_factorised_is_an_error():
    with pytest.raises(NumericsError, match="could not be factorised even with"):
        factorise(torch.full((4, 4), float("nan")), 0.01)


@pytest.mark.parametrize("settings", [{"block": 0}, {"damping": -1.0}, {"damping": 2.0}])
def test_sparsegpt_settings_out_of_range(settings):
    with pytest.raises(UsageError, match="SparseGPT needs block >= 1"):
        SparseGPT(**settings)


@pytest.mark.parametrize("block", [1, 7, 64, 500])
def test_the_block_size_of_sparsegpt_does_not_change_n_m_results(problem, block):
    weight, inputs = problem
    stats, pattern = stats_of(inputs), parse_pattern("2:4")
    expected = SparseGPT().prune(weight, stats, pattern, 0.5)
    found = SparseGPT(block=block).prune(weight, stats, pattern, 0.5)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-5, rtol=1e-5)


def test_the_listing_says_what_the_docstrings_say():
    for name, entry in METHODS.entries().items():
        assert (METHODS.load(name).__doc__ or "").splitlines()[0] == entry.summary


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UnknownNameError, match="no method named 'wandar'; did you mean 'wanda'\\? Known: admm"):
        METHODS.load("wandar")
    with pytest.raises(UnknownNameError, match="no method named 'xyz'; known: admm"):
        METHODS.load("xyz")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "admm", "alps"])
def test_a_group_that_is_none_is_refused_even_where_no_recipe_checks_it(method):
    with pytest.raises(UsageError, match="within a 'row' or the 'matrix'; found group 'typo'"):
        METHODS.load("reconstruct")(initial={"name": method, "group": "typo"})
