"""Reading the saved model back, as transformers loads it, and comparing it with the dense one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import VerificationError
from secateur.masks import Pattern
from secateur.masks.permutation import chunked
from secateur.models.as_loaded import AsLoaded
from secateur.models.skeleton import Skeleton
from secateur.models.stored import Place, same_bits
from secateur.models.structure import Linear
from secateur.pruning.records import LinearRecord


@dataclass(frozen=True)
class Verification:
    """What was read back. ``sparsity``: zeros among prunable weights; ``sparsity_of_all``: among all stored numbers."""

    linears: int
    untouched: int
    sparsity: float
    sparsity_of_all: float


def verify(
    skeleton: Skeleton, pruned: Path, records: Sequence[LinearRecord], pattern: Pattern, asked: Mapping[str, float]
) -> Verification:
    """Check the pruned model's files against its records and the dense model of ``skeleton``.

    ``asked``: sparsity of every linear that was to be pruned. Each has the zeros its record says and at least the asked
    ones (rounded down in every row), the N:M pattern in every group, and only finite numbers, in what transformers loads
    of the files, one block at a time. Every other parameter is the dense model's, those that a record names as
    ``moved`` with their rows in its order; every stored tensor that no pruned linear is part of is bit-identical.
    Raises ``VerificationError`` listing what is wrong.
    """
    check = _Check(skeleton, AsLoaded(pruned), records, pattern, asked)
    problems = [*check.names(), *check.untouched(), *check.changed()]
    if problems:
        listed = "; ".join(problems[:5])
        raise VerificationError(
            f"The saved model {pruned} is not what it should be ({len(problems)} problems): {listed}. Do not use it; "
            "delete the folder and run again."
        )
    weights = sum(record.weights for record in records)
    numbers = check.saved.checkpoint.parameters
    return Verification(len(records), check.untouched_count, check.zeros / max(weights, 1), check.zeros / numbers)


class _Check:
    """One comparison. ``zeros``, ``untouched_count``: what it counts on the way."""

    def __init__(
        self,
        skeleton: Skeleton,
        saved: AsLoaded,
        records: Sequence[LinearRecord],
        pattern: Pattern,
        asked: Mapping[str, float],
    ) -> None:
        self.stored, self.saved, self.pattern, self.asked = skeleton.stored, saved, pattern, asked
        self.records = {record.name: record for record in records}
        self.zeros = 0
        linears = [linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)]
        linears += [skeleton.head()] if any(record.block == len(skeleton.blocks) for record in records) else []
        self._pruned: dict[str, list[Linear]] = {}
        self._moved: dict[str, list[tuple[Place, int, Tensor]]] = {}
        orders = {name: (dim, torch.tensor(record.order)) for record in records for name, dim in record.moved.items()}
        for linear in linears:
            if linear.name in self.records:
                self._pruned.setdefault(linear.weight.parameter, []).append(linear)
            for name, place in ((f"{linear.name}.weight", linear.weight), (f"{linear.name}.bias", linear.bias)):
                if (
                    name in orders
                    and place is not None
                    and not (place is linear.weight and linear.name in self.records)
                ):
                    self._moved.setdefault(place.parameter, []).append((place, *orders[name]))
        self._blocks = self._by_block(linears)
        touched = {
            key for parameter in (*self._pruned, *self._moved) for key in self.stored.keys(parameter, copies=True)
        }
        self._others = [name for name in self.saved.checkpoint.names if name not in touched]
        self.untouched_count = len(self._others)

    def _by_block(self, linears: Sequence[Linear]) -> list[list[str]]:
        """The changed parameters, those of a block together."""
        blocks: dict[int, dict[str, None]] = {}
        for linear in linears:
            for place in filter(None, (linear.weight, linear.bias)):
                if place.parameter in self._pruned or place.parameter in self._moved:
                    blocks.setdefault(linear.block, {})[place.parameter] = None
        return [list(parameters) for parameters in blocks.values()]

    def names(self) -> Iterator[str]:
        before, after = self.stored.checkpoint, self.saved.checkpoint
        yield from (f"{name} is missing" for name in before.names if name not in after)
        yield from (f"{name} is not in the dense model" for name in after.names if name not in before)
        yield from (f"{name} was to be pruned, but was not" for name in self.asked.keys() - self.records.keys())

    def untouched(self) -> Iterator[str]:
        """The stored tensors that no pruned linear is part of."""
        before, after = self.stored.checkpoint, self.saved.checkpoint
        for name in self._others:
            if name in before and not same_bits(after.read(name), before.read(name)):
                yield f"{name} should be untouched, but differs from the dense model"

    def changed(self) -> Iterator[str]:
        """The parameters that a pruned or moved linear is part of, as transformers loads them."""
        for parameters in self._blocks:
            keys = [key for name in parameters for key in self.stored.keys(name, copies=True)]
            loaded = self.saved.parameters([key for key in dict.fromkeys(keys) if key in self.saved.checkpoint])
            for name in parameters:
                owner = self.stored.owner(name)
                if owner not in loaded:
                    yield f"transformers does not load {name} from the saved model"
                    continue
                yield from self._problems(name, loaded[owner])
            self.stored.forget()

    def _problems(self, parameter: str, loaded: Tensor) -> Iterator[str]:
        expected = self.stored.read(Place(parameter)).to(loaded.dtype).clone()
        for place, dim, order in self._moved.get(parameter, ()):
            rows = expected[place.part]
            expected[place.part] = rows.index_select(dim, chunked(order, rows.shape[dim]))
        for linear in self._pruned.get(parameter, ()):
            part = loaded[linear.weight.part]
            expected[linear.weight.part] = part
            rows = linear.as_rows(part)
            yield from _linear_problems(rows, self.records[linear.name], self.pattern, self.asked)
            self.zeros += int((rows == 0).sum())
        if not same_bits(loaded, expected):
            moved = " with its rows reordered, but is not" if parameter in self._moved else ""
            yield f"{parameter} should be the dense model's{moved or ' outside of what was pruned, but is not'}"


def _linear_problems(rows: Tensor, record: LinearRecord, pattern: Pattern, asked: Mapping[str, float]) -> Iterator[str]:
    zeros = int((rows == 0).sum())
    if not bool(rows.isfinite().all()):
        yield f"{record.name} holds numbers that are not finite"
    if zeros != record.zeros or zeros < record.pruned:
        yield f"{record.name} has {zeros:,} zeros, not the {record.zeros:,} recorded ({record.pruned:,} pruned)"
    least = asked.get(record.name, 0) * record.weights - record.outputs - 1
    if zeros < least:
        yield f"{record.name} has {zeros:,} zeros; a sparsity of {asked[record.name]:g} asks for {least:,.0f}"
    pattern = pattern.at(record.sparsity)
    if pattern.keep is not None and pattern.group is not None:
        kept = (rows.reshape(-1, pattern.group) != 0).sum(dim=1)
        bad = int((kept > pattern.keep).sum())
        if bad:
            yield f"{record.name} breaks the pattern {pattern} in {bad:,} of {len(kept):,} groups"
