"""What every weight of a model is multiplied with: seen at the matrix products themselves, whatever module makes them.

A weight is recognised by where its numbers lie, so that an expert's slice of a three-dimensional parameter is known as
well as a ``Linear``'s matrix, and it does not matter which way round a model stores or multiplies it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

aten = torch.ops.aten


@dataclass(frozen=True)
class Region:
    """A matrix within a parameter: the ``number``-th along its leading dimensions, and the part of it that was used.

    ``across``: its inputs lie along the last dimension but one, as in GPT-2's Conv1D. ``rows`` (outputs) and ``columns``
    (inputs) are ranges.
    """

    parameter: str
    number: int
    across: bool
    rows: tuple[int, int]
    columns: tuple[int, int]

    def of(self, values: Tensor) -> Tensor:
        """The region of the parameter's ``values``, as ``[out, in]``."""
        matrix = values.reshape(-1, *values.shape[-2:])[self.number]
        matrix = matrix.T if self.across else matrix
        return matrix[slice(*self.rows), slice(*self.columns)]

    def __str__(self) -> str:
        return self.parameter + (f"[{self.number}]" if self.number else "")


@dataclass
class Inputs:
    """What a region was multiplied with: ``gram`` ``[in, in]`` fp64, summed over ``tokens``."""

    gram: Tensor
    tokens: int = 0

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        self.gram += rows.T @ rows
        self.tokens += len(rows)


@dataclass
class Observed:
    """``inputs``: of every region, by how many times it was multiplied before within the same forward (weights that
    several blocks share are used more than once). ``odd``: parameters that were used in a way that is not understood."""

    inputs: dict[Region, list[Inputs]] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)

    def of_parameter(self, name: str) -> list[Region]:
        return [region for region in self.inputs if region.parameter == name]


def observe(model: PreTrainedModel, sequences: Sequence[Sequence[int]], wanted: Collection[str]) -> Observed:
    """Run the model over every sequence by itself, without padding, and watch the parameters ``wanted``."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # one product for each expert, over its own tokens
    watch = _Watch({name: value for name, value in model.named_parameters() if name in wanted})
    with torch.no_grad(), watch:
        for tokens in sequences:
            watch.times.clear()
            model(input_ids=torch.tensor([list(tokens)]), **no_cache(model))
    return watch.observed


def no_cache(model: nn.Module) -> dict[str, bool]:
    """``use_cache=False``, where the model's forward knows it."""
    known = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in known or "kwargs" in known else {}


class _Watch(TorchDispatchMode):
    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.observed = Observed()
        self.times: dict[Region, int] = {}
        self._names = {value.untyped_storage().data_ptr(): (name, value) for name, value in parameters.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.bmm.default):
            self._product(*args[:2])
        elif func in (aten.addmm.default, aten.baddbmm.default):
            self._product(*args[1:3])
        elif func in (aten.mv.default, aten.addmv.default):
            matrix, vector = args[-2:]
            self._product(matrix, vector[:, None])
        return func(*args, **(kwargs or {}))

    def _product(self, left: Tensor, right: Tensor) -> None:
        for weight, inputs in ((right, left), (left.mT, right.mT)):
            found = self._names.get(weight.untyped_storage().data_ptr())
            if found is None:
                continue
            if weight.ndim == 2:
                self._used(*found, weight, inputs)
            else:
                for one, its_inputs in zip(weight, inputs, strict=True):
                    self._used(*found, one, its_inputs)

    def _used(self, name: str, parameter: Tensor, weight: Tensor, inputs: Tensor) -> None:
        """``inputs`` ``[tokens, in]`` were multiplied by ``weight`` ``[in, out]``, a view of ``parameter``."""
        regions = find_regions(name, parameter, weight)
        if not regions:
            self.observed.odd.add(name)
        for region in regions:
            time = self.times.get(region, 0)
            self.times[region] = time + 1
            seen = self.observed.inputs.setdefault(region, [])
            if time == len(seen):
                width = inputs.shape[1]
                seen.append(Inputs(torch.zeros(width, width, dtype=torch.float64)))
            seen[time].add(inputs)


def find_regions(name: str, parameter: Tensor, weight: Tensor) -> list[Region]:
    """The regions of ``parameter`` that ``weight`` ``[in, out]``, a view of its storage, is; none if it is no such view."""
    rows, columns = parameter.shape[-2:] if parameter.ndim > 1 else (1, len(parameter))
    offset = int(weight.storage_offset()) - int(parameter.storage_offset())
    number, within = divmod(offset, rows * columns)
    row, column = divmod(within, columns)
    (inputs, outputs), (down, right) = weight.shape, weight.stride()
    if not parameter.is_contiguous() or parameter.ndim < 2:
        return []
    if right == columns and down == 1 and column + inputs <= columns:
        if row + outputs <= rows:
            return [Region(name, number, False, (row, row + outputs), (column, column + inputs))]
        if row == 0 and outputs % rows == 0:  # several matrices, one under the other
            return [
                Region(name, number + more, False, (0, rows), (column, column + inputs))
                for more in range(outputs // rows)
            ]
    if down == columns and right == 1 and column + outputs <= columns and row + inputs <= rows:
        return [Region(name, number, True, (column, column + outputs), (row, row + inputs))]
    return []
