"""Methods that optimise the layer error: what each promises about it, against exact solutions on small matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from secateur.errors import NumericsError, UsageError
from secateur.masks import keep_mask, parse_pattern
from secateur.methods import METHODS
from secateur.methods.admm import ADMM
from secateur.methods.alps import ALPS
from secateur.methods.magnitude import Magnitude
from secateur.methods.quadratic import fit_kept, proximal_inverse
from secateur.methods.reconstruction import Reconstruct
from secateur.methods.ria import RIA
from secateur.methods.sparsegpt import SparseGPT
from secateur.methods.sparseswaps import SparseSwaps
from secateur.methods.wanda import Wanda
from secateur.statistics import ColumnNorms, Gram, InputStatistics

NAMES = ["alps", "admm", "sparseswaps", "reconstruct", "ria"]
BY_ROW = {"sparseswaps", "reconstruct", "ria"}
UNSTRUCTURED = parse_pattern("unstructured")


def stats_of(inputs: torch.Tensor) -> InputStatistics:
    found = InputStatistics([ColumnNorms(inputs.shape[-1]), Gram(inputs.shape[-1])])
    found.update(inputs)
    return found


def correlated(rows: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, InputStatistics]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator)
    hidden = torch.randn(8 * inputs, inputs, generator=generator) * torch.arange(1, inputs + 1) ** -0.7
    mixed = hidden @ torch.randn(inputs, inputs, generator=generator)
    mixed += 0.2 * torch.randn(mixed.shape, generator=generator)
    return weight, stats_of(mixed * torch.logspace(-0.5, 0.5, inputs)[torch.randperm(inputs, generator=generator)])


def error(weight: torch.Tensor, found: torch.Tensor, stats: InputStatistics) -> float:
    change = (found - weight).double()
    return float(((change @ stats[Gram].matrix.double()) * change).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8", "1:4", "3:4"])
@pytest.mark.parametrize("inputs", [64, 24])
def test_counts_are_exact_and_nothing_given_is_changed(name, pattern, inputs):
    weight, stats = correlated(20, inputs)
    parsed = parse_pattern(pattern)
    sparsity = parsed.sparsity or 0.37
    before, gram = weight.clone(), stats[Gram].matrix.clone()
    method = METHODS.load(name)()
    pruned = method.prune(weight, stats, parsed, sparsity)
    assert torch.equal(weight, before)
    assert torch.equal(stats[Gram].matrix, gram)
    assert (pruned.weight[~pruned.mask] == 0).all()
    assert (pruned.weight[pruned.mask] != 0).all()
    dropped = ~pruned.mask
    if parsed.structured:
        assert (pruned.mask.reshape(-1, parsed.group).sum(dim=1) == parsed.keep).all()
    elif name in BY_ROW:
        assert (dropped.sum(dim=1) == int(inputs * sparsity)).all()
    else:
        assert dropped.sum() == int(weight.numel() * sparsity)
    again = method.prune(weight, stats, parsed, sparsity)
    assert torch.equal(again.mask, pruned.mask)
    assert torch.equal(again.weight, pruned.weight)


@pytest.mark.parametrize("kind", [ALPS, ADMM])
def test_the_row_group_prunes_every_row_alike(kind):
    weight, stats = correlated(20, 64)
    mask = kind(group="row").prune(weight * torch.logspace(-1, 1, 20)[:, None], stats, UNSTRUCTURED, 0.37).mask
    assert ((~mask).sum(dim=1) == int(64 * 0.37)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_dead_inputs_and_zero_rows(name, pattern):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(300, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    weight = torch.randn(12, 32, generator=generator)
    inputs[:, [3, 20]] = 0
    weight[[0, 7]] = 0
    pruned = METHODS.load(name)().prune(weight, stats_of(inputs), parse_pattern(pattern), 0.5)
    assert pruned.weight.isfinite().all()
    assert (pruned.weight[[0, 7]] == 0).all()
    # Keeping a dead weight is free, so a swap may: it lets a weight go whose absence makes up for others.
    assert name == "sparseswaps" or (pruned.weight[:, [3, 20]] == 0).all()
    pruned = METHODS.load(name)().prune(weight, stats_of(inputs * 0), parse_pattern(pattern), 0.5)
    assert pruned.weight.isfinite().all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_methods(pattern, seed):
    weight, stats = correlated(96, 128, seed)
    parsed = parse_pattern(pattern)

    def of(method):
        return error(weight, method.prune(weight, stats, parsed, parsed.sparsity or 0.7).weight, stats)

    assert of(ALPS()) < of(ADMM()) < of(SparseGPT()) < of(Wanda()) < of(Magnitude())
    assert of(Reconstruct()) < 0.8 * of(Wanda())
    assert of(SparseSwaps()) < 0.8 * of(Wanda())
    assert of(Reconstruct(initial="sparseswaps")) < of(SparseSwaps())
    assert of(Reconstruct(initial="sparsegpt")) < of(SparseGPT())


def test_a_matrix_wide_choice_errs_less_than_one_by_row_where_rows_differ():
    weight, stats = correlated(96, 128)
    weight *= torch.logspace(-0.5, 0.5, 96)[:, None]
    for kind in (ALPS, ADMM):
        found = [
            error(weight, kind(group=g).prune(weight, stats, UNSTRUCTURED, 0.7).weight, stats)
            for g in ("matrix", "row")
        ]
        assert found[0] < found[1]


def exact_fit(weight, mask, gram, damping):
    damped = gram.double() + damping * gram.diagonal().double().mean() * torch.eye(len(gram), dtype=torch.float64)
    found = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept in enumerate(mask):
        right = damped[kept] @ weight[row].double()
        found[row, kept] = torch.linalg.solve(damped[kept][:, kept], right)
    return found.float()


@pytest.mark.parametrize("damping", [0.01, 0.1])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_reconstruction_finds_the_least_squares_solution(damping, pattern):
    weight, stats = correlated(30, 48)
    method = Reconstruct(damping=damping, iterations=500, tolerance=1e-6)
    pruned = method.prune(weight, stats, parse_pattern(pattern), 0.5)
    assert torch.equal(pruned.mask, Wanda().prune(weight, stats, parse_pattern(pattern), 0.5).mask)
    torch.testing.assert_close(
        pruned.weight, exact_fit(weight, pruned.mask, stats[Gram].matrix, damping), rtol=1e-3, atol=1e-4
    )
    assert pruned.notes["fit_residual"] <= 1e-6


def test_rows_that_are_done_early_do_not_disturb_the_others():
    weight, stats = correlated(40, 48)
    mask = keep_mask(weight.abs(), UNSTRUCTURED, 0.5)
    mask[::2] = True  # nothing pruned: the dense row is the solution, and where it starts
    fit = fit_kept(stats[Gram], 0.01, weight, mask, weight * mask, 500, 1e-6)
    torch.testing.assert_close(fit.weight, exact_fit(weight, mask, stats[Gram].matrix, 0.01), rtol=1e-3, atol=1e-4)
    assert torch.equal(fit.weight[::2], weight[::2])


def best_swap(row, mask, gram, group):
    """By brute force: the lowest error a swap of one kept and one pruned weight can give."""
    found = []
    for out, back in itertools.product(mask.nonzero().flatten().tolist(), (~mask).nonzero().flatten().tolist()):
        if group is None or out // group == back // group:
            other = mask.clone()
            other[out], other[back] = False, True
            found.append(float((row * ~other) @ gram @ (row * ~other)))
    return min(found)


@pytest.mark.parametrize(("pattern", "group"), [("unstructured", None), ("2:4", 4), ("1:4", 4)])
def test_an_exact_swap_is_the_best_of_all(pattern, group):
    weight, stats = correlated(6, 16)
    parsed, gram = parse_pattern(pattern), stats[Gram].matrix.double()
    for swaps in range(4):
        before = SparseSwaps(swaps=swaps, exact=True).prune(weight, stats, parsed, 0.5).mask
        after = SparseSwaps(swaps=swaps + 1, exact=True).prune(weight, stats, parsed, 0.5).mask
        for row, old, new in zip(weight.double(), before, after, strict=True):
            was, found = (float((row * ~mask) @ gram @ (row * ~mask)) for mask in (old, new))
            assert found == pytest.approx(min(was, best_swap(row, old, gram, group)), rel=1e-4)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("initial", ["wanda", "magnitude", "sparsegpt"])
def test_the_error_of_no_row_rises_with_the_swaps(exact, pattern, initial):
    weight, stats = correlated(24, 40)
    gram = stats[Gram].matrix.double()
    before = first = None
    for swaps in (0, 1, 2, 3, 5, 8, 100):
        method = SparseSwaps(initial=initial, swaps=swaps, exact=exact, candidates=4)
        pruned = method.prune(weight, stats, parse_pattern(pattern), 0.5)
        assert torch.equal(pruned.weight, weight * pruned.mask)
        lost = (weight * ~pruned.mask).double()
        errors = ((lost @ gram) * lost).sum(dim=1)
        if before is not None:
            assert (errors <= before * (1 + 1e-6)).all()
            assert swaps > 3 or errors.sum() < before.sum()
        before = errors
        first = before if first is None else first
    assert pruned.notes["error_share"] == pytest.approx(float(before.sum() / first.sum()), rel=1e-4)


def test_exact_swaps_end_where_none_gains_and_the_candidates_come_near():
    weight, stats = correlated(6, 16)
    gram = stats[Gram].matrix.double()
    exact = SparseSwaps(exact=True).prune(weight, stats, UNSTRUCTURED, 0.5)
    for row, mask in zip(weight.double(), exact.mask, strict=True):
        assert float((row * ~mask) @ gram @ (row * ~mask)) <= best_swap(row, mask, gram, None) * (1 + 1e-5)
    weight, stats = correlated(64, 128)
    near, exact = (
        SparseSwaps(exact=e).prune(weight, stats, UNSTRUCTURED, 0.5).notes["error_share"] for e in (False, True)
    )
    assert exact < 0.7
    assert near < exact + 0.05


def test_one_initial_in_another():
    weight, stats = correlated(20, 32)
    method = Reconstruct(initial={"name": "sparseswaps", "initial": "ria", "swaps": 5})
    assert set(method.statistics()) == {Gram, ColumnNorms}
    pruned = method.prune(weight, stats, UNSTRUCTURED, 0.5)
    assert torch.equal(pruned.mask, SparseSwaps(initial="ria", swaps=5).prune(weight, stats, UNSTRUCTURED, 0.5).mask)
    assert pruned.notes["swaps_per_row"] <= 5


def test_admm_at_a_mask_that_never_changes_nears_the_least_squares_solution():
    weight, stats = correlated(30, 48)
    pruned = ADMM(steps=400).prune(weight, stats, UNSTRUCTURED, 0.5)
    gram = stats[Gram].matrix
    damped = gram + torch.diag(0.1 * gram.diagonal())
    expected = exact_fit(weight, pruned.mask, damped, 0.0)
    torch.testing.assert_close(pruned.weight, expected, rtol=1e-2, atol=1e-2)


def test_admm_grows_the_mask_by_the_share_of_each_step():
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
    for pattern, sparsity in (("unstructured", 0.6), ("1:4", 0.75)):
        parsed = parse_pattern(pattern)
        final = keep_mask(scores, parsed, sparsity, "matrix")
        counts = []
        for share in (0.2, 0.5, 0.9, 1.0):
            mask = ADMM()._mask(scores, parsed, sparsity, share)
            assert not (~mask & final).any()  # what goes early is among what goes at last
            counts.append(int((~mask).sum()))
        assert counts == [int(128 * sparsity * share + 1e-9) for share in (0.2, 0.5, 0.9)] + [int((~final).sum())]


def test_ria_by_hand():
    weight = torch.tensor([[1.0, -3.0], [2.0, 0.0]])
    stats = stats_of(torch.tensor([[4.0, 9.0]]))
    expected = torch.tensor([[1 / 4 + 1 / 3, 3 / 4 + 3 / 3], [2 / 2 + 2 / 3, 0.0]]) * torch.tensor([2.0, 3.0])
    torch.testing.assert_close(RIA().score(weight, stats), expected)
    torch.testing.assert_close(RIA(power=0).score(weight, stats), expected / torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_sparsity_that_prunes_nothing_changes_nothing(name):
    weight, stats = correlated(20, 32)
    pruned = METHODS.load(name)().prune(weight, stats, UNSTRUCTURED, 0.001)
    assert pruned.mask.all()
    torch.testing.assert_close(pruned.weight, weight, rtol=1e-4, atol=1e-4)


def test_a_gram_that_is_not_finite_is_an_error():
    gram = Gram(4)
    gram.update(torch.full((3, 4), float("nan")))
    with pytest.raises(NumericsError, match="could not be factorised"):
        proximal_inverse(gram, 0.01, 0.1)


OUT_OF_RANGE = {
    ALPS: [{"group": "column"}, {"rho": 0.0}, {"damping": -1}, {"steps": 0}],
    ADMM: [{"group": "block"}, {"ramp": 21}, {"ramp": 0}, {"rho": -1}],
    SparseSwaps: [
        {"swaps": -1},
        {"candidates": 0},
        {"initial": {"swaps": 3}},
        {"initial": {"name": "ria", "swaps": 3}},
    ],
    Reconstruct: [{"initial": "wandaa"}, {"iterations": 0}, {"damping": 2.0}, {"tolerance": 1.0}],
    RIA: [{"power": -1}],
}


@pytest.mark.parametrize(("kind", "settings"), [(kind, each) for kind, them in OUT_OF_RANGE.items() for each in them])
def test_settings_out_of_range(kind, settings):
    with pytest.raises(UsageError, match=r"\w \w.*\.$"):
        kind(**settings)


def test_linears_of_one_input_share_what_follows_from_the_gram():
    weight, stats = correlated(20, 32)
    calls = []
    gram = stats[Gram]
    derive = gram.derive
    gram.derive = lambda key, make: derive(key, lambda: calls.append(key) or make())
    for kind in (ALPS, ADMM):
        kind().prune(weight, stats, UNSTRUCTURED, 0.5)
        first = len(calls)
        kind().prune(weight + 1, stats, UNSTRUCTURED, 0.5)
        assert len(calls) == first > 0
