"""Patterns and masks: exact counts, one tie rule, sentences for nonsense."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import PatternError
from secateur.masks import keep_mask, parse_pattern
from secateur.masks.pattern import resolve_sparsity
from secateur.masks.selection import keep_highest, pruned_count


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 40),
    sparsity=st.floats(0.01, 0.99),
    levels=st.integers(1, 5),
    group=st.sampled_from(["row", "matrix"]),
    seed=st.integers(0, 1000),
)
def test_counts_are_exact_whatever_the_ties(rows, columns, sparsity, levels, group, seed):
    scores = torch.randint(levels, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    mask = keep_mask(scores, parse_pattern("unstructured"), sparsity, group)
    if group == "row":
        assert ((~mask).sum(dim=1) == pruned_count(columns, sparsity)).all()
    else:
        assert (~mask).sum() == pruned_count(rows * columns, sparsity)
    worst_kept = torch.where(mask, scores, torch.inf)
    best_dropped = torch.where(mask, -torch.inf, scores)
    axis = 1 if group == "row" else (0, 1)
    assert (worst_kept.amin(axis) >= best_dropped.amax(axis)).all()


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4", "1:2", "5:16", "2:3"])
def test_every_group_keeps_exactly_n(pattern):
    keep, group = map(int, pattern.split(":"))
    scores = torch.randint(3, (7, group * 5), generator=torch.Generator().manual_seed(1)).float()
    mask = keep_mask(scores, parse_pattern(pattern), 1 - keep / group)
    assert (mask.reshape(-1, group).sum(dim=1) == keep).all()


def test_of_equal_scores_the_lower_index_goes_first():
    scores = torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0, 1.0]])
    assert keep_highest(scores, 3).tolist() == [[False, False, False, True, True, True]]
    assert keep_mask(torch.ones(2, 4), parse_pattern("2:4"), 0.5).tolist() == [[False, False, True, True]] * 2


def test_permuting_inputs_permutes_the_mask():
    scores = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20)
    unstructured = parse_pattern("unstructured")
    assert torch.equal(keep_mask(scores, unstructured, 0.6)[:, order], keep_mask(scores[:, order], unstructured, 0.6))


def test_the_count_is_safe_against_binary_fractions():
    assert pruned_count(100, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
    assert pruned_count(77, 0.6) == 46


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4:2", "did you mean '2:4'"),
        ("4:4", "1 <= N < M"),
        ("0:4", "1 <= N < M"),
        ("2-4", "known: 'unstructured', or 'N:M'"),
        ("", "There is no pattern"),
        (124, "In YAML 1.1 an unquoted 2:4 is the number 124"),
        (None, "A pattern is text"),
    ],
)
def test_patterns_that_make_no_sense(text, words):
    with pytest.raises(PatternError, match=words.replace("(", r"\(")):
        parse_pattern(text)


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.5, float("nan"), float("inf"), 0.0, 1.0])
def test_sparsity_must_be_strictly_between_0_and_1(sparsity):
    with pytest.raises(PatternError, match="not strictly between 0 and 1"):
        resolve_sparsity(parse_pattern("unstructured"), sparsity)


def test_sparsity_may_not_contradict_the_pattern():
    assert resolve_sparsity(parse_pattern("1:4"), None) == 0.75
    assert resolve_sparsity(parse_pattern("2:4"), 0.5) == 0.5
    with pytest.raises(PatternError, match=r"0\.6 contradicts the pattern 2:4"):
        resolve_sparsity(parse_pattern("2:4"), 0.6)


def test_a_width_the_groups_do_not_divide_is_refused():
    with pytest.raises(PatternError, match="7 inputs, which do not divide into groups of 4"):
        keep_mask(torch.rand(2, 7), parse_pattern("2:4"), 0.5)
