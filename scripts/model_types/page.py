"""The rows as a page of documentation."""

from __future__ import annotations

from collections.abc import Sequence

import transformers

from model_types.compare import ALWAYS_ALLOWED, TOLERANCE
from model_types.hints import BY_NATURE
from model_types.pruning import Setting
from model_types.trial import OUTCOMES, Row

LONGEST_DETAIL = 260


def page(rows: Sequence[Row], settings: Sequence[Setting], command: str) -> str:
    """The page in Markdown: what was done, the totals, a row for every type."""
    return "\n".join([*_introduction(rows, settings, command), "", *_totals(rows), "", *_table(rows)]) + "\n"


def _introduction(rows: Sequence[Row], settings: Sequence[Setting], command: str) -> list[str]:
    asked = ", ".join(str(setting) for setting in settings)
    allowed = ", ".join(f"{share:.1%} ({method})" for method, share in TOLERANCE.items())
    return [
        "# Which models Secateur prunes",
        "",
        f"Every type of causal language model that transformers {transformers.__version__} knows was tried: {len(rows)} types, "
        "made small, with random weights, and saved as transformers saves them. Each was pruned on six sequences of unequal "
        f"length ({asked}), and loaded again with `AutoModelForCausalLM`. What it loaded was held against masks computed "
        "plainly from the dense model, which ran the sequences one by one; every other tensor has to be bit-identical.",
        "",
        f"A type *agrees* when in no setting and in no linear more of the mask differs than {allowed}, or {ALWAYS_ALLOWED} "
        "weights: sums in another order rank nearly equal scores differently. Tiny models say nothing about memory, speed or "
        "quality.",
        "",
        f"Made by `{command}`; `scripts/models_table.py --only TYPE` tries one.",
    ]


def _totals(rows: Sequence[Row]) -> list[str]:
    lines = ["| outcome | types |", "|---|---|"]
    for outcome in OUTCOMES:
        mine = [row for row in rows if row.outcome == outcome]
        if mine:
            nature = sum(row.model_type in BY_NATURE for row in mine)
            lines.append(f"| {outcome} | {len(mine)}{f', {nature} of them by nature' if nature else ''} |")
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| type | class | outcome | linears pruned | compared | left dense | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.model_type):
        left = ", ".join(f"`{name}`" for name in row.left_dense)
        cells = [
            f"`{row.model_type}`",
            row.class_name + (f" in {row.made['whole']}" if row.made.get("whole") else ""),
            _outcome(row),
            str(row.linears or ""),
            str(row.compared or "") + (f", {len(row.unseen)} not seen" if row.unseen else ""),
            f"{row.pruned_share:.1%}" if row.compared else "",
            left,
            f"{row.seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _outcome(row: Row) -> str:
    detail = row.detail if len(row.detail) <= LONGEST_DETAIL else row.detail[:LONGEST_DETAIL] + "..."
    if row.model_type in BY_NATURE:
        detail = f"by nature: {BY_NATURE[row.model_type]}"
    return row.outcome + (": " + " ".join(detail.replace("|", "\\|").split()) if detail else "")
