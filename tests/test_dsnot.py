"""DSnoT, Wanda's variant and the moments of inputs: parity with the original programs, and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import UnknownNameError, UsageError
from secateur.masks import Pattern, parse_pattern
from secateur.masks.selection import pruned_count
from secateur.methods import METHODS
from secateur.methods.base import Pruned
from secateur.methods.dsnot import DSnoT
from secateur.methods.magnitude import Magnitude
from secateur.methods.sparsegpt import SparseGPT
from secateur.methods.wanda import Wanda
from secateur.methods.wanda_variant import WandaVariant
from secateur.statistics import ColumnNorms, Gram, InputStatistics, Moments

UNSTRUCTURED = parse_pattern("unstructured")
PATTERNS = {"u50": "unstructured", "u60": "unstructured", "2_4": "2:4", "4_8": "4:8"}


def stats_of(inputs: torch.Tensor) -> InputStatistics:
    width = inputs.shape[-1]
    found = InputStatistics([ColumnNorms(width), Gram(width), Moments(width)])
    found.update(inputs)
    return found


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, InputStatistics]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(3, 40, inputs, generator=generator) * torch.rand(inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator), stats_of(
        tokens + torch.randn(inputs, generator=generator)
    )


# --- Moments


@pytest.fixture
def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 10, 16, generator=generator) + 3 * torch.randn(6, 1, 16, generator=generator)


def moments_of(*updates: tuple[torch.Tensor, torch.Tensor | None]) -> Moments:
    found = Moments(16)
    for rows, mask in updates:
        found.update(rows, mask)
    return found


def test_moments_are_the_mean_and_the_variance_of_all_tokens(tokens):
    found = moments_of(*((sample, None) for sample in tokens))
    rows = tokens.double().reshape(-1, 16)
    torch.testing.assert_close(found.mean().double(), rows.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance().double(), rows.var(0, correction=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_how_tokens_are_batched_changes_no_moment(tokens, split):
    whole, parts = moments_of((tokens, None)), moments_of(*((part, None) for part in tokens.split(split)))
    assert parts.tokens == whole.tokens == 60
    torch.testing.assert_close(parts.mean(), whole.mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts.variance(), whole.variance(), rtol=1e-6, atol=1e-6)


def test_moments_of_parts_add_up(tokens):
    whole, found, rest = (moments_of((part, None)) for part in (tokens, tokens[:2], tokens[2:]))
    for total, part in zip(found.sums(), rest.sums(), strict=True):
        total += part
    found.tokens += rest.tokens
    torch.testing.assert_close(found.mean(), whole.mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance(), whole.variance(), rtol=1e-6, atol=1e-6)


def test_padding_changes_no_moment(tokens):
    mask = torch.ones(6, 10, dtype=torch.bool)
    mask[2, 4:], mask[5] = False, False
    padded = tokens.masked_fill(~mask[..., None], 1e6)
    found, real = moments_of(*zip(padded, mask, strict=True)), moments_of(*((row[keep], None) for row, keep in zip(tokens, mask, strict=True)))  # fmt: skip
    assert found.tokens == real.tokens == 44
    assert torch.equal(found.mean(), real.mean())
    assert torch.equal(found.variance(), real.variance())


def test_a_mean_far_larger_than_the_spread_leaves_the_variance_alone():
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)) * 0.01 + 100
    found = moments_of(*((part, None) for part in rows.split(500)))
    torch.testing.assert_close(found.variance().double(), rows.double().var(0, correction=0), rtol=1e-3, atol=0)


def test_a_constant_channel_has_no_variance_and_no_tokens_no_moments():
    assert not moments_of((torch.full((7, 16), 2.0), None)).variance().any()
    empty = moments_of((torch.empty(0, 16), None))
    assert empty.finite()
    assert not empty.mean().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_notice_what_is_not_finite(tokens, bad):
    tokens[3, 7, 2] = bad
    assert not moments_of((tokens, None)).finite()


# --- Parity of DSnoT


def original_stats(golden: dict[str, np.ndarray]) -> InputStatistics:
    """Our statistics, with the original's own mean and (within-sample) variance in the place of the moments."""
    inputs = torch.tensor(golden["X"])
    stats = stats_of(inputs)
    moments = stats[Moments]
    mean = torch.tensor(golden["dsnot_sum_metric_row"]).double() / inputs.shape[1]
    moments.totals = mean * moments.tokens
    moments.squares = (torch.tensor(golden["dsnot_var"]).double().flatten() + mean.square()) * moments.tokens
    return stats


def refined(golden: dict[str, np.ndarray], initial: str, name: str, stats: InputStatistics):
    """The original's initial mask (it compares magnitudes per row, ours per matrix), its result, ours, and the pattern."""
    weight, pattern = torch.tensor(golden["W"]), parse_pattern(PATTERNS[name])
    start = torch.tensor(~golden[f"dsnot_{initial}_{name}_skipmlp_mask"])
    method = DSnoT(initial=initial, same_sign="n:m", tokens_per_sample=golden["X"].shape[1])
    if initial == "wanda":
        sparsity = pattern.sparsity or int(name[1:]) / 100
        found = method.prune(weight, stats, pattern, sparsity)
        assert torch.equal(Wanda().prune(weight, stats, pattern, sparsity).mask, start)
    else:
        found = method.refine(weight, Pruned(start, weight * start), stats, pattern)
    assert torch.equal(found.weight, weight * found.mask)
    return start, torch.tensor(~golden[f"dsnot_{initial}_{name}_mask"]), found.mask, pattern


@pytest.fixture(scope="module")
def golden(shared):
    def load(shape: str) -> dict[str, np.ndarray]:
        with np.load(shared / "golden" / f"matrix_{shape}.npz") as data:
            return dict(data)

    return load


WHOLE = {
    "s33x77": ("u50", "u60"),
    "s48x200": ("u50", "u60"),
    "s128x128": ("u50", "u60"),
    "s256x384": ("u50", "u60", "2_4", "4_8"),
}


@pytest.mark.parametrize("initial", ["wanda", "magnitude"])
@pytest.mark.parametrize(("shape", "name"), [(shape, name) for shape, names in WHOLE.items() for name in names])
def test_parity_with_the_original_program(golden, shape, name, initial):
    data = golden(shape)
    start, expected, found, _ = refined(data, initial, name, original_stats(data))
    assert (start != expected).sum() > start.shape[0]  # it had work to do
    assert torch.equal(found, expected)
    # With the variance of all tokens instead of that within samples, a few swaps are others.
    _, _, own, _ = refined(data, initial, name, stats_of(torch.tensor(data["X"])))
    assert (own != expected).float().mean() < 3e-3


@pytest.mark.parametrize("initial", ["wanda", "magnitude"])
@pytest.mark.parametrize("name", list(PATTERNS))
@pytest.mark.parametrize("shape", ["s96x256", "s48x200"])
def test_parity_wherever_the_original_is_right(golden, shape, name, initial):
    data = golden(shape)
    start, expected, found, pattern = refined(data, initial, name, original_stats(data))
    # An input that is always zero is 0/0 to the original, which regrows it before all others when the error is positive.
    dead = torch.tensor(data["dsnot_var"]).flatten() == 0
    wrong = (expected & ~start)[:, dead].any(dim=1) | (expected.sum(dim=1) != start.sum(dim=1))
    if pattern.group:
        # Past the end of its list of candidates it leaves the pattern.
        wrong |= (expected.reshape(len(start), -1, pattern.group).sum(dim=2) != pattern.keep).any(dim=1)
        if dead.any():  # one direction only: rows with a negative error never meet the dead inputs
            negative = ((torch.tensor(data["W"]) * ~start) @ torch.tensor(data["dsnot_sum_metric_row"])) < 0
            assert negative.sum() > 40
            assert torch.equal(found[negative], expected[negative])
    different = (found != expected).any(dim=1)
    assert (~different).sum() >= 20
    assert (different & ~wrong).sum() <= 2  # rows it damaged without changing a count
    if dead.any():
        assert not (found & ~start)[:, dead].any()


# --- Properties of DSnoT


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 9),
    groups=st.integers(1, 14),
    group=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 8)]),
    sign=st.sampled_from(["always", "n:m", "never"]),
    cycles=st.integers(0, 60),
    initial=st.sampled_from(["wanda", "magnitude", "sparsegpt"]),
    seed=st.integers(0, 99),
)
def test_n_m_patterns_stay_exact(outputs, groups, group, sign, cycles, initial, seed):
    keep, size = group
    weight, stats = problem(outputs, groups * size, seed)
    method = DSnoT(initial=initial, same_sign=sign, cycles=cycles, threshold=0.0)
    mask = method.prune(weight, stats, Pattern(keep, size), 1 - keep / size).mask
    assert (mask.reshape(outputs, -1, size).sum(dim=2) == keep).all()


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 70),
    sparsity=st.floats(0, 0.99),
    sign=st.sampled_from(["always", "n:m", "never"]),
    cycles=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_rows_keep_their_counts_however_narrow(outputs, inputs, sparsity, sign, cycles, seed):
    weight, stats = problem(outputs, inputs, seed)
    method = DSnoT(same_sign=sign, cycles=cycles, threshold=0.0)
    before, found = weight.clone(), method.prune(weight, stats, UNSTRUCTURED, sparsity)
    assert torch.equal(weight, before)
    start = Wanda().prune(weight, stats, UNSTRUCTURED, sparsity).mask
    assert torch.equal(found.mask.sum(dim=1), start.sum(dim=1))
    assert ((found.mask != start).sum(dim=1) <= 2 * cycles).all()
    assert torch.equal(found.weight, weight * found.mask)


def errors(weight: torch.Tensor, pruned: Pruned, stats: InputStatistics) -> torch.Tensor:
    return (weight - pruned.weight) @ stats[Moments].mean()


@pytest.mark.parametrize("initial", ["wanda", "magnitude", "sparsegpt"])
def test_with_the_sign_kept_no_row_errs_more(initial):
    weight, stats = problem(40, 96)
    start = METHODS.load(initial)().prune(weight, stats, UNSTRUCTURED, 0.5)
    found = DSnoT(initial=initial, same_sign="always").prune(weight, stats, UNSTRUCTURED, 0.5)
    before, after = errors(weight, start, stats), errors(weight, found, stats)
    assert (after.abs() <= before.abs() + 1e-5).all()
    assert (after * before >= -1e-5).all()
    assert after.abs().mean() < 0.8 * before.abs().mean()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_the_mean_output_comes_nearer(pattern):
    weight, stats = problem(40, 400)
    start = Wanda().prune(weight, stats, parse_pattern(pattern), 0.5)
    found = DSnoT().prune(weight, stats, parse_pattern(pattern), 0.5)
    assert errors(weight, found, stats).abs().mean() < errors(weight, start, stats).abs().mean() / 3


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize("initial", ["wanda", "sparsegpt"])
def test_the_notes_say_what_the_swaps_did(pattern, initial):
    weight, stats = problem(40, 96)
    parsed = parse_pattern(pattern)
    found = DSnoT(initial=initial, same_sign="never").prune(weight, stats, parsed, 0.5)
    start = METHODS.load(initial)().prune(weight, stats, parsed, 0.5)
    for name, pruned in (("before", start), ("after", found)):
        error = float(errors(weight, pruned, stats).abs().mean())
        assert found.notes[f"mean_error_{name}"] == pytest.approx(error, rel=1e-3)
    assert found.notes["swaps_per_row"] == pytest.approx(float((found.mask != start.mask).sum() / 2 / 40))
    assert found.notes["swaps_per_row"] > 10


def test_weights_an_initial_method_changed_stay_changed_and_regrown_ones_are_the_dense():
    weight, stats = problem(24, 64)
    start = SparseGPT().prune(weight, stats, UNSTRUCTURED, 0.5)
    found = DSnoT(initial="sparsegpt", same_sign="never").prune(weight, stats, UNSTRUCTURED, 0.5)
    regrown, stayed = found.mask & ~start.mask, found.mask & start.mask
    assert regrown.sum() > 20
    assert torch.equal(found.weight[regrown], weight[regrown])
    assert torch.equal(found.weight[stayed], start.weight[stayed])
    assert not found.weight[~found.mask].any()
    assert found.notes["damping"] == start.notes["damping"]


def test_one_swap_by_hand():
    # Rows lose inputs 0 and 1 (scores 1 and 1.1 against 2 and more); the error is 1 - 1.1 of equal means and variances.
    weight = torch.tensor([[1.0, -1.1, 3.0, 2.0, -2.5]])
    stats = stats_of(torch.tensor([[1.0] * 5, [3.0] * 5]))
    found = DSnoT(cycles=1, threshold=0.0, same_sign="n:m").prune(weight, stats, UNSTRUCTURED, 0.4)
    # Error -0.2 (means are 2): -1.1 comes back, the lowest of positive D goes.
    assert found.mask.tolist() == [[False, True, True, False, True]]
    assert found.notes["mean_error_before"] == pytest.approx(0.2, abs=1e-5)
    assert found.notes["mean_error_after"] == pytest.approx(6.0, abs=1e-5)
    kept = DSnoT(cycles=1, threshold=0.0).prune(weight, stats, UNSTRUCTURED, 0.4)
    assert kept.mask.tolist() == [[False, False, True, True, True]]


def test_the_threshold_counts_the_tokens_of_a_sample():
    weight, stats = problem(20, 64)
    start = Wanda().prune(weight, stats, UNSTRUCTURED, 0.5)
    error = errors(weight, start, stats).abs()
    middle = float(error.median()) * 100
    method = DSnoT(threshold=middle, tokens_per_sample=100, same_sign="never")
    found = method.prune(weight, stats, UNSTRUCTURED, 0.5)
    moved = (found.mask != start.mask).any(dim=1)
    assert torch.equal(moved, error * 100 > middle)
    assert 5 <= moved.sum() <= 15


def test_settled_rows_and_no_cycles_leave_the_initial_mask():
    weight, stats = problem(8, 64)
    for method in (DSnoT(cycles=0), DSnoT(threshold=1e9)):
        for pattern in (UNSTRUCTURED, parse_pattern("2:4")):
            assert torch.equal(
                method.prune(weight, stats, pattern, 0.5).mask, Wanda().prune(weight, stats, pattern, 0.5).mask
            )


def test_the_variance_can_be_left_out():
    weight, stats = problem(20, 64)
    found = {p: DSnoT(regrow_power=p).prune(weight, stats, UNSTRUCTURED, 0.5).mask for p in (0.0, 1.0, 4.0)}
    assert not torch.equal(found[0.0], found[1.0])
    assert not torch.equal(found[1.0], found[4.0])
    flat = stats[Moments]
    flat.squares = flat.totals.square() / flat.tokens + 2.0 * flat.tokens
    flat._derived.clear()
    assert torch.equal(DSnoT(regrow_power=1.0).prune(weight, stats, UNSTRUCTURED, 0.5).mask, found[0.0])


def test_dead_and_constant_inputs_do_no_harm():
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    inputs[:, :8], inputs[:, 8:12] = 0, 2.0
    for tokens in (inputs, torch.zeros(50, 32), torch.ones(50, 32)):
        stats = stats_of(tokens)
        start = Wanda().prune(weight, stats, UNSTRUCTURED, 0.5).mask
        found = DSnoT().prune(weight, stats, UNSTRUCTURED, 0.5)
        assert torch.equal(found.mask.sum(dim=1), start.sum(dim=1))
        assert found.weight.isfinite().all()
        assert not (found.mask & ~start)[:, tokens[0] == 0].any()


def test_one_derivation_serves_all_linears_of_an_input():
    weight, stats = problem(8, 64)
    first = DSnoT().prune(weight, stats, UNSTRUCTURED, 0.5).mask
    assert ("regrowing", 1.0) in stats[Moments]._derived
    assert torch.equal(DSnoT().prune(weight, stats, UNSTRUCTURED, 0.5).mask, first)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        ("transformer.h.0.attn.c_attn", True),
        ("gpt_neox.layers.3.attention.dense", True),
        ("model.layers.0.mlp.down_proj", False),
        ("model.decoder.layers.0.fc1", False),
        ("lm_head", False),
    ],
)
def test_which_linears_are_left_to_the_initial_method(name, attention):
    method = DSnoT(initial={"name": "sparsegpt", "damping": 0.05})
    assert method.for_linear(name) == (method if attention else SparseGPT(damping=0.05))
    everywhere = DSnoT(linears="all")
    assert everywhere.for_linear(name) is everywhere


def test_its_statistics_are_its_own_and_the_initial_method_s():
    assert DSnoT().statistics() == (ColumnNorms, Moments)
    assert DSnoT(initial="sparsegpt").statistics() == (ColumnNorms, Moments, Gram)


@pytest.mark.parametrize(
    ("settings_", "error", "message"),
    [
        ({"cycles": -1}, UsageError, "DSnoT needs cycles >= 0"),
        ({"threshold": -0.1}, UsageError, "threshold >= 0"),
        ({"threshold": float("nan")}, UsageError, "threshold >= 0"),
        ({"tokens_per_sample": 0}, UsageError, "tokens_per_sample >= 1"),
        ({"regrow_power": 9.0}, UsageError, "regrow_power <= 4"),
        ({"linears": "mlp"}, UsageError, "linears is one of all, attention"),
        ({"same_sign": "sometimes"}, UsageError, "same_sign is one of"),
        ({"initial": "wander"}, UnknownNameError, "did you mean 'wanda'"),
        ({"initial": {"name": "sparsegpt", "damp": 1}}, UsageError, "cannot have the settings"),
    ],
)
def test_settings_out_of_range(settings_, error, message):
    with pytest.raises(error, match=message):
        DSnoT(**settings_)


# --- Wanda's variant


@pytest.mark.parametrize("shape", ["s33x77", "s48x200", "s96x256", "s128x128", "s160x131", "s256x384"])
def test_the_variant_is_the_original_s_at_its_own_sparsity(golden, shape):
    data = golden(shape)
    weight, stats = torch.tensor(data["W"]), stats_of(torch.tensor(data["X"]))
    expected = torch.tensor(~data["wanda_variant_u50_mask"])
    reached = int((~expected).sum()) / expected.numel()  # it stops within 0.001 of the 0.5 it was asked
    assert torch.equal(WandaVariant().prune(weight, stats, UNSTRUCTURED, reached).mask, expected)
    exact = WandaVariant().prune(weight, stats, UNSTRUCTURED, 0.5).mask
    assert (~exact).sum() == exact.numel() // 2
    assert (exact != expected).sum() == abs(int((~expected).sum()) - exact.numel() // 2)
    assert not torch.equal(exact, Wanda().prune(weight, stats, UNSTRUCTURED, 0.5).mask)


@settings(max_examples=50, deadline=None)
@given(outputs=st.integers(1, 12), inputs=st.integers(1, 40), sparsity=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_variant_is_exact_and_takes_the_lowest_of_each_row(outputs, inputs, sparsity, seed):
    weight, stats = problem(outputs, inputs, seed)
    weight = weight.round(decimals=1)  # ties
    weight[::3] = 0
    found = WandaVariant().prune(weight, stats, UNSTRUCTURED, sparsity)
    assert (~found.mask).sum() == pruned_count(weight.numel(), sparsity)
    scores = Wanda().score(weight, stats)
    highest_gone = scores.masked_fill(found.mask, -1).amax(dim=1)
    lowest_kept = scores.masked_fill(~found.mask, torch.inf).amin(dim=1)
    assert (highest_gone <= lowest_kept).all()
    assert torch.equal(found.weight, weight * found.mask)


def test_rows_of_the_variant_lose_one_share_of_their_scores():
    weight, stats = problem(30, 500)
    weight *= torch.logspace(-3, 3, 30)[:, None]
    weight[:15] = weight[:15] ** 3  # heavier tails: more of them can go
    found = WandaVariant().prune(weight, stats, UNSTRUCTURED, 0.5)
    scores = Wanda().score(weight, stats)
    lost = (scores * ~found.mask).sum(dim=1) / scores.sum(dim=1)
    assert lost.max() - lost.min() < 0.01
    gone = (~found.mask).sum(dim=1).float()
    assert gone[:15].min() > gone[15:].max()


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_the_variant_of_n_m_is_wanda(pattern):
    weight, stats = problem(12, 64)
    parsed = parse_pattern(pattern)
    found = WandaVariant().prune(weight, stats, parsed, 0.5)
    assert torch.equal(found.mask, Wanda().prune(weight, stats, parsed, 0.5).mask)


def test_magnitude_ranks_the_n_m_swaps_of_its_own_mask():
    weight, stats = problem(30, 96)
    pattern = parse_pattern("4:8")
    start = Magnitude().prune(weight, stats, pattern, 0.5)
    found = DSnoT(initial="magnitude", cycles=1, threshold=0.0).prune(weight, stats, pattern, 0.5).mask
    gone = (start.mask & ~found).nonzero().tolist()
    assert len(gone) > 10
    for row, column in gone:
        first = column // 8 * 8
        group = weight[row, first : first + 8].abs().masked_fill(~start.mask[row, first : first + 8], torch.inf)
        assert group.argmin() == column - first
