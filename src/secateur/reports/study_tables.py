"""A table as Markdown and as LaTeX, whatever its cells say, and rows as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from secateur.reports.drawing import Table, printable

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"{\char96}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}
"""Brackets and stars, because a cell may follow the end of a row, which would take them for its option."""


def latex_text(text: str) -> str:
    """Printed as it is by LaTeX with its usual fonts (letters beyond Latin need a font that has them)."""
    return "".join(_LATEX.get(c, c) for c in printable(text))


def markdown_text(text: str) -> str:
    """Shown as it is in a cell: no markup, no HTML, no end of the cell."""
    return re.sub(r"([\\`*_|<>\[\]~$])", r"\\\1", printable(text)).replace("&", "&amp;")


def markdown_table(table: Table) -> str:
    """GitHub's kind: text to the left, numbers to the right."""
    rule = ["---" if column < table.heads else "---:" for column in range(len(table.columns))]
    lines = [[*map(markdown_text, table.columns)], rule, *([*map(markdown_text, row)] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def latex_table(table: Table) -> str:
    """A ``tabular`` that needs no package."""
    sides = "l" * table.heads + "r" * (len(table.columns) - table.heads)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_text, cells)) + r" \\"

    body = [line(row) for row in table.rows]
    caption = f"% {printable(table.caption)}"
    return "\n".join(
        [caption, rf"\begin{{tabular}}{{{sides}}}", r"\hline", line(table.columns), r"\hline", *body, r"\hline", r"\end{tabular}"]
    ) + "\n"  # fmt: skip


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Numbers in full, missing ones empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()
