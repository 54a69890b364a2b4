"""What pruning did to each linear, noted block by block so that an interrupted run can go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from secateur.journal import Journal


@dataclass(frozen=True)
class LinearRecord:
    """One pruned linear. ``sparsity`` was asked, ``pruned`` weights went, ``zeros`` are zero in the saved tensor (a
    weight that was kept may have been zero before). ``tokens``: calibration tokens behind its statistics, those of
    prompts by their weight.

    ``key``: the stored tensor that it is (part of), or the model's parameter if that is made of several.
    ``order``: if not empty, its inputs were reordered: place p has the dense model's input ``order[p]``. ``moved``: the
    weights and biases whose rows were put in that order with them, by name, and the dimension the rows lie along
    (of k times as many rows, each k-th part)."""

    name: str
    key: str
    block: int
    outputs: int
    inputs: int
    sparsity: float
    pruned: int
    zeros: int
    tokens: float
    seconds: float
    transposed: bool = False
    notes: dict[str, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


class BlockJournal:
    """The records of the blocks pruned so far, one line of a journal each."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.blocks = {
            entry["block"]: [LinearRecord(**record) for record in entry["linears"]] for entry in self._journal.entries
        }

    def add(self, block: int, records: list[LinearRecord]) -> None:
        self._journal.append({"block": block, "linears": [asdict(record) for record in records]})
        self.blocks[block] = records

    def records(self) -> list[LinearRecord]:
        return [record for block in sorted(self.blocks) for record in self.blocks[block]]


def achieved_sparsity(records: Iterable[LinearRecord]) -> float:
    """Share of zeros among the prunable weights."""
    found = list(records)
    return sum(record.zeros for record in found) / max(1, sum(record.weights for record in found))
