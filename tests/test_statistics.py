"""Statistics are sums over tokens: how tokens were batched or padded changes nothing."""

from __future__ import annotations

import pytest
import torch

from secateur.statistics import ColumnNorms, Gram


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(6, 10, 16, generator=torch.Generator().manual_seed(0))


def _values(kind, updates):
    found = kind(16)
    for rows, mask in updates:
        found.update(rows, mask)
    return found, found.norms() if kind is ColumnNorms else found.mean()


@pytest.mark.parametrize("kind", [ColumnNorms, Gram])
def test_how_tokens_are_batched_changes_nothing(kind, tokens):
    whole, expected = _values(kind, [(tokens, None)])
    for split in (1, 2, 4):
        parts, found = _values(kind, [(part, None) for part in tokens.split(split)])
        assert parts.tokens == whole.tokens == 60
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [ColumnNorms, Gram])
def test_padding_changes_nothing(kind, tokens):
    mask = torch.ones(6, 10, dtype=torch.bool)
    mask[2, 4:] = False
    padded = tokens.masked_fill(~mask[..., None], 1e6)
    found, value = _values(kind, [(padded, mask)])
    real, expected = _values(kind, [(tokens[mask], None)])
    assert found.tokens == real.tokens == 54
    assert torch.equal(value, expected)


def test_the_diagonal_of_the_gram_is_the_squared_norms(tokens):
    _, gram = _values(Gram, [(tokens, None)])
    _, norms = _values(ColumnNorms, [(tokens, None)])
    torch.testing.assert_close(gram.diagonal().sqrt(), norms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_taken_in_fp32(dtype):
    found = ColumnNorms(4)
    found.update(torch.full((5000, 4), 8.0, dtype=dtype))  # the sum of squares, 320,000, is past fp16's largest
    assert found.finite()
    torch.testing.assert_close(found.norms(), torch.full((4,), 8.0))


@pytest.mark.parametrize("kind", [ColumnNorms, Gram])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_noticed(kind, bad):
    rows = torch.randn(5, 16)
    rows[3, 7] = bad
    found = kind(16)
    found.update(rows)
    assert not found.finite()


def test_what_follows_from_a_statistic_is_forgotten_with_new_tokens():
    gram = Gram(2)
    gram.update(torch.ones(1, 2))
    calls = []
    for _ in range(2):
        gram.derive("x", lambda: calls.append(1))
    gram.update(torch.ones(1, 2))
    gram.derive("x", lambda: calls.append(1))
    assert len(calls) == 2
