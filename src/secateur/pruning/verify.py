"""Reading the saved model back and comparing it with the dense one, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import VerificationError
from secateur.masks import Pattern
from secateur.masks.permutation import chunked
from secateur.models.checkpoint import Checkpoint
from secateur.pruning.records import LinearRecord


@dataclass(frozen=True)
class Verification:
    """What was read back. ``sparsity``: zeros among prunable weights; ``sparsity_of_all``: among all stored numbers."""

    linears: int
    untouched: int
    sparsity: float
    sparsity_of_all: float


def verify(
    dense: Path, pruned: Path, records: Sequence[LinearRecord], pattern: Pattern, asked: Mapping[str, float]
) -> Verification:
    """Check the pruned model's files against its records and the dense model's files.

    ``asked``: sparsity of every linear that was to be pruned. Each has the zeros its record says and at least the asked
    ones (rounded down in every row), the N:M pattern in every group, and only finite numbers; every other tensor is
    bit-identical, those that a record names as ``moved`` with their rows in its order. Raises ``VerificationError`` listing what is wrong.
    """
    before, after = Checkpoint(dense), Checkpoint(pruned)
    by_key = {record.key: record for record in records}
    problems = [f"{name} is missing" for name in before.names if name not in after]
    problems += [f"{name} was to be pruned, but was not" for name in asked.keys() - {record.name for record in records}]
    moved = {key: (dim, torch.tensor(record.order)) for record in records for key, dim in record.moved.items()}
    zeros = 0
    for name in after.names:
        tensor = after.read(name)
        if name not in before:
            problems.append(f"{name} is not in the dense model")
        elif name in by_key:
            problems += _linear_problems(tensor, by_key[name], pattern, asked)
            zeros += int((tensor == 0).sum())
        elif name in moved:
            dim, order = moved[name]
            expected = before.read(name)
            if not _same_bits(tensor, expected.index_select(dim, chunked(order, expected.shape[dim]))):
                problems.append(f"{name} should be the dense model's with its rows reordered, but is not")
        elif not _same_bits(tensor, before.read(name)):
            problems.append(f"{name} should be untouched, but differs from the dense model")
    problems += [
        f"{record.key} was pruned, but is not in the saved model" for record in records if record.key not in after
    ]
    if problems:
        listed = "; ".join(problems[:5])
        raise VerificationError(
            f"The saved model {pruned} is not what it should be ({len(problems)} problems): {listed}. Do not use it; "
            "delete the folder and run again."
        )
    weights = sum(record.weights for record in records)
    untouched = len(after.names) - len(by_key.keys() | moved.keys())
    return Verification(len(records), untouched, zeros / max(weights, 1), zeros / after.parameters)


def _linear_problems(tensor: Tensor, record: LinearRecord, pattern: Pattern, asked: Mapping[str, float]) -> list[str]:
    rows = tensor.T if record.transposed else tensor
    found = int((rows == 0).sum())
    problems = []
    if not bool(rows.isfinite().all()):
        problems.append(f"{record.name} holds numbers that are not finite")
    if found != record.zeros or found < record.pruned:
        problems.append(
            f"{record.name} has {found:,} zeros, not the {record.zeros:,} recorded ({record.pruned:,} pruned)"
        )
    least = asked.get(record.name, 0) * record.weights - record.outputs - 1
    if found < least:
        problems.append(
            f"{record.name} has {found:,} zeros; a sparsity of {asked[record.name]:g} asks for {least:,.0f}"
        )
    pattern = pattern.at(record.sparsity)
    if pattern.keep is not None and pattern.group is not None:
        kept = (rows.reshape(-1, pattern.group) != 0).sum(dim=1)
        bad = int((kept > pattern.keep).sum())
        if bad:
            problems.append(f"{record.name} breaks the pattern {pattern} in {bad:,} of {len(kept):,} groups")
    return problems


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)))
