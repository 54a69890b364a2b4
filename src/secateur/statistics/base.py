"""The statistic protocol: a streaming sum over tokens, blind to how they were batched or padded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Statistic(ABC):
    """A sum over calibration tokens of something computed from a linear's input vectors.

    ``tokens`` counts the tokens seen. Splitting the same tokens into other batches, or adding padding that the token
    mask excludes, changes nothing but the rounding.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        self.inputs = inputs
        self.device = torch.device(device)
        self.tokens = 0
        self._derived: dict[Hashable, Any] = {}

    @abstractmethod
    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` ``[tokens, inputs]``, any float dtype. ``update`` is what callers use."""

    @abstractmethod
    def sums(self) -> list[Tensor]:
        """The tensors held, to be added to those of the same statistic over other tokens (then call ``merged``)."""

    def merged(self, tokens: int) -> None:
        """Note that the tensors of ``sums`` now cover ``tokens`` tokens."""
        self.tokens = tokens
        self._derived.clear()

    def permuted(self, order: Tensor) -> Self:
        """The same of inputs in another order, as a copy: place p has input ``order[p]`` ``[inputs]`` int64.

        Here for sums of one number an input; others override it.
        """
        found = type(self)(self.inputs, self.device)
        for one, other in zip(self.sums(), found.sums(), strict=True):
            other.copy_(one[order.to(one.device)])
        found.merged(self.tokens)
        return found

    @abstractmethod
    def finite(self) -> bool:
        """Whether every number held is finite."""

    def update(self, inputs: Tensor, token_mask: Tensor | None = None) -> None:
        """Take in ``inputs`` ``[..., inputs]``; of ``token_mask`` ``[...]`` (bool) only the True tokens count."""
        rows = inputs.reshape(-1, self.inputs)
        if token_mask is not None:
            rows = rows[token_mask.reshape(-1).to(rows.device)]
        self.tokens += rows.shape[0]
        self._derived.clear()
        self.add(rows)

    def derive(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """``make()``, computed once for the tokens seen so far: linears that share an input share what follows from it."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


Kind = TypeVar("Kind", bound=Statistic)


class InputStatistics:
    """The statistics of one linear's inputs, by their class: ``stats[ColumnNorms]``."""

    def __init__(self, statistics: Iterable[Statistic] = ()) -> None:
        self._by_kind = {type(statistic): statistic for statistic in statistics}

    def __getitem__(self, kind: type[Kind]) -> Kind:
        found = self._by_kind[kind]
        assert isinstance(found, kind)
        return found

    def __iter__(self) -> Iterator[Statistic]:
        return iter(self._by_kind.values())

    def update(self, inputs: Tensor, token_mask: Tensor | None = None) -> None:
        for statistic in self._by_kind.values():
            statistic.update(inputs, token_mask)

    def permuted(self, order: Tensor) -> InputStatistics:
        """The statistics of the inputs in another order, copied: place p has input ``order[p]``."""
        return InputStatistics(statistic.permuted(order) for statistic in self._by_kind.values())

    def finite(self) -> bool:
        return all(statistic.finite() for statistic in self._by_kind.values())

    @property
    def tokens(self) -> int:
        return max((statistic.tokens for statistic in self._by_kind.values()), default=0)
