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

    ``tokens`` counts the tokens seen, each by its weight. Splitting the same tokens into other batches, or adding padding
    that the token mask excludes, changes nothing but the rounding.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        self.inputs = inputs
        self.device = torch.device(device)
        self.tokens: float = 0
        self._derived: dict[Hashable, Any] = {}

    @abstractmethod
    def add(self, rows: Tensor, weight: float = 1) -> None:
        """Take in ``rows`` ``[tokens, inputs]``, any float dtype, each as if it stood there ``weight`` times. ``update`` is
        what callers use."""

    @abstractmethod
    def sums(self) -> list[Tensor]:
        """The tensors held, to be added to those of the same statistic over other tokens (then call ``merged``)."""

    def merged(self, tokens: float) -> None:
        """Note that the tensors of ``sums`` now cover ``tokens`` tokens."""
        self.tokens = int(tokens) if float(tokens).is_integer() else tokens
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
        """Take in ``inputs`` ``[..., inputs]``; of ``token_mask`` ``[...]`` (bool) only the True tokens count, or, where it
        is of floats, each token so many times as it says.

        Tokens of one weight are taken in together: a few different weights cost next to nothing, many do.
        """
        rows = inputs.reshape(-1, self.inputs)
        if token_mask is None:
            self._take(rows, 1)
            return
        mask = token_mask.reshape(-1)
        if mask.dtype == torch.bool:
            self._take(rows[mask.to(rows.device)], 1)
            return
        for weight in mask.unique().tolist():  # ascending: the order of the sums is always the same
            if weight:
                self._take(rows[(mask == weight).to(rows.device)], weight)

    def _take(self, rows: Tensor, weight: float) -> None:
        self.merged(self.tokens + weight * rows.shape[0])
        self.add(rows, weight)

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
    def tokens(self) -> float:
        return max((statistic.tokens for statistic in self._by_kind.values()), default=0)
