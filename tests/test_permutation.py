"""Orders of the inputs under which N:M keeps more of the scores, and statistics in such an order."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import PatternError
from secateur.masks import parse_pattern
from secateur.masks.permutation import _reassign, best_order, chunked, kept_score
from secateur.statistics import ColumnNorms, Gram, InputStatistics, Moments

PAIRS = parse_pattern("2:4")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from(["2:4", "4:8", "1:4", "2:3"]), st.integers(0, 99))
def test_an_order_never_keeps_less(rows, groups, text, seed):
    pattern = parse_pattern(text)
    generator = torch.Generator().manual_seed(seed)
    # Few different scores, so that ties are many.
    scores = torch.randint(0, 5, (rows, groups * pattern.group), generator=generator).float()
    order = best_order(scores, pattern)
    assert sorted(order.tolist()) == list(range(scores.shape[1]))
    assert kept_score(scores[:, order], pattern) >= kept_score(scores, pattern)
    assert torch.equal(order, best_order(scores, pattern))


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4"])
def test_an_order_keeps_more_where_more_can_be_kept(text):
    pattern = parse_pattern(text)
    large = torch.arange(64) < 64 * pattern.keep // pattern.group  # all in the first groups
    scores = torch.where(large, 10.0, 1.0) + torch.rand(48, 64, generator=torch.Generator().manual_seed(0))
    order = best_order(scores, pattern)
    assert (large[order].view(-1, pattern.group).sum(dim=1) == pattern.keep).all()


def test_assignments_keep_more_than_dealing_alone():
    scores = torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) ** 4
    kept = [kept_score(scores[:, best_order(scores, PAIRS, rounds)], PAIRS) for rounds in (0, 1, 2)]
    assert kept_score(scores, PAIRS) < kept[1] < kept[2]
    assert kept[0] < 0.99 * kept[1]


@pytest.mark.parametrize("text", ["2:4", "1:3", "3:4"])
def test_an_assignment_is_the_best_of_all(text):
    pattern = parse_pattern(text)
    groups, size = 4, pattern.group
    scores = torch.rand(7, groups * size, generator=torch.Generator().manual_seed(0)) ** 3
    members = torch.arange(groups * size).view(groups, size)
    _reassign(members, scores.T.contiguous(), pattern.keep)
    others = []
    for taken in itertools.permutations(
        range(groups)
    ):  # all ways to hand out the last place, which was handed out last
        other = members.clone()
        other[:, -1] = members[list(taken), -1]
        others.append(kept_score(scores[:, other.reshape(-1)], pattern))
    assert others[0] >= max(others) - 1e-5
    assert others[0] > kept_score(scores, pattern)


def test_scores_without_a_better_order_stay_as_they_are():
    assert torch.equal(best_order(torch.ones(8, 32), PAIRS), torch.arange(32))
    assert torch.equal(best_order(torch.rand(8, 4), PAIRS), torch.arange(4))
    assert torch.equal(best_order(torch.rand(8, 32), parse_pattern("unstructured")), torch.arange(32))
    with pytest.raises(PatternError, match="do not divide"):
        best_order(torch.rand(8, 30), PAIRS)


def test_statistics_of_reordered_inputs():
    generator = torch.Generator().manual_seed(0)
    inputs, order = torch.randn(50, 24, generator=generator), torch.randperm(24, generator=generator)
    kinds = (ColumnNorms, Gram, Moments)
    plain, reordered = (InputStatistics(kind(24) for kind in kinds) for _ in range(2))
    plain.update(inputs)
    reordered.update(inputs[:, order])
    found = plain.permuted(order)
    assert found.tokens == 50
    torch.testing.assert_close(found[ColumnNorms].norms(), reordered[ColumnNorms].norms())
    torch.testing.assert_close(found[Gram].matrix, reordered[Gram].matrix)
    torch.testing.assert_close(found[Moments].mean(), reordered[Moments].mean())
    torch.testing.assert_close(found[Moments].variance(), reordered[Moments].variance())
    assert not torch.equal(plain[Gram].matrix, found[Gram].matrix)


def test_parts_follow_the_same_order():
    assert chunked(torch.tensor([2, 0, 1]), 6).tolist() == [2, 0, 1, 5, 3, 4]
