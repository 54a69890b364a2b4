"""What ``real_parity.py`` measured, as rows, and the tables made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROWS, RESULTS, TABLE = "linears.csv", "results.json", "table.md"
OURS, THEIRS = "secateur", "llm-compressor"


@dataclass(frozen=True)
class Row:
    """One linear in two prunings. ``one`` and ``other`` name them; ``both``, ``either``: entries that are zero in both,
    in at least one; ``difference``: Frobenius norm of the weights' difference, over that of ``other``. ``gap``: where it
    was looked at, how far apart the scores are, relatively, of weights of which each is pruned in one alone, at most."""

    method: str
    pattern: str
    one: str
    other: str
    linear: str
    weights: int
    both: int
    either: int
    difference: float
    gap: float | None = None

    @property
    def block(self) -> int:
        return int(self.linear.split(".")[2])

    @property
    def differing(self) -> int:
        return self.either - self.both


def compare(method: str, pattern: str, one: str, other: str, linear: str, weights: tuple[Tensor, Tensor]) -> Row:
    """The row of one linear, whose ``weights`` are those of ``one`` and of ``other``."""
    first, second = (weight.double() for weight in weights)
    zero, other_zero = first == 0, second == 0
    difference = float((first - second).norm() / second.norm())
    both, either = int((zero & other_zero).sum()), int((zero | other_zero).sum())
    return Row(method, pattern, one, other, linear, first.numel(), both, either, float(f"{difference:.4g}"))


def score_gap(scores: Tensor, weights: tuple[Tensor, Tensor], group: int) -> float | None:
    """Among each ``group`` consecutive ``scores`` of a row (0: the whole row), the largest relative difference between a
    weight that is zero in the first of ``weights`` alone and one that is in the second alone; ``None`` without any."""
    first, second = ((weight == 0).reshape(-1, group or weight.shape[1]) for weight in weights)
    grouped = scores.double().reshape(first.shape)
    rows = (first != second).any(dim=1)
    if not rows.any():
        return None
    grouped, first, second = grouped[rows], first[rows], second[rows]
    alone = [grouped.where(one & ~other, float("nan")) for one, other in ((first, second), (second, first))]
    furthest = (alone[0][:, :, None] - alone[1][:, None, :]).abs() / torch.maximum(
        alone[0][:, :, None], alone[1][:, None, :]
    )
    known = furthest[~furthest.isnan()]
    return float(f"{known.max().item():.3g}") if known.numel() else None


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_rows(path: Path) -> list[Row]:
    kinds: dict[str, Callable[[str], Any]] = {"weights": int, "both": int, "either": int, "difference": float}
    kinds["gap"] = lambda value: float(value) if value else None
    with path.open(newline="") as stream:
        return [
            Row(**{name: kinds.get(name, str)(value) for name, value in entry.items()})
            for entry in csv.DictReader(stream)
        ]


def equal(rows: Sequence[Row]) -> float:
    """The share of mask entries that the two prunings have in common."""
    return 1 - sum(row.differing for row in rows) / sum(row.weights for row in rows)


def jaccard(rows: Sequence[Row]) -> float:
    return sum(row.both for row in rows) / sum(row.either for row in rows)


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.method, row.pattern, row.one, row.other


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """The rows of each method, pattern and pair of prunings, in the order of their first."""
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault(_key(row), []).append(row)
    return found


def main_table(rows: Sequence[Row], results: dict[str, Any]) -> list[str]:
    """Both programs as they come: perplexities, and how far their masks agree."""
    perplexity = results["perplexity"]
    lines = [
        "| method | pattern | perplexity: Secateur | llm-compressor | ratio | equal mask entries | block 0 | least of any linear "
        "| Jaccard of pruned | weights' difference, median |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| dense | | {perplexity['dense']:.3f} | {perplexity['dense']:.3f} | | | | | | |",
    ]
    for (method, pattern, one, other), found in grouped(rows).items():
        if (one, other) != (OURS, THEIRS):
            continue
        own = perplexity.get(f"{method} {pattern}", {})
        measured = [f"{own[label]:.3f}" if label in own else "not measured" for label in (OURS, THEIRS)]
        ratio = f"{own[OURS] / own[THEIRS]:.4f}" if len(own) == 2 else ""
        first = [row for row in found if row.block == 0]
        differences = sorted(row.difference for row in found)
        lines.append(
            f"| {method} | {_asked(pattern)} | {' | '.join(measured)} | {ratio} "
            f"| {equal(found):.3%} | {equal(first):.4%} | {min(equal([row]) for row in found):.2%} | {jaccard(found):.4f} "
            f"| {differences[len(differences) // 2]:.1e} |"
        )
    return lines


def depth_table(rows: Sequence[Row], blocks: Sequence[int] = (0, 1, 2, 4, 9, 19, 29)) -> list[str]:
    """Equal mask entries by depth, of every pair of prunings."""
    lines = [
        f"| method | pattern | compared | {' | '.join(f'block {block}' for block in blocks)} | all | entries that differ |",
        f"|---|---|---|{'---|' * (len(blocks) + 2)}",
    ]
    for (method, pattern, one, other), found in grouped(rows).items():
        shares = [f"{equal([row for row in found if row.block == block]):.4%}" for block in blocks]
        differing = sum(row.differing for row in found)
        lines.append(
            f"| {method} | {_asked(pattern)} | {one} : {other} | {' | '.join(shares)} | {equal(found):.4%} | {differing:,} |"
        )
    return lines


def _asked(pattern: str) -> str:
    return "50 %" if pattern == "unstructured" else pattern


def tables(folder: Path) -> str:
    """The page of tables of a folder of results."""
    rows, results = read_rows(folder / ROWS), json.loads((folder / RESULTS).read_text())
    return "\n".join([*main_table(rows, results), "", *depth_table(rows), ""])
