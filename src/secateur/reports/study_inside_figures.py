"""What happened inside the model: overlap of masks against seed noise, error by block and kind of linear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.reports.drawing import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    Drawing,
    Table,
    cut,
    heat_cells,
    new_figure,
    style,
    svg_of,
)
from secateur.reports.study_facts import Axis, Study
from secateur.reports.study_scores import decimals, number, said, settings

PANELS, NUMBERED, LETTERS, STEPS = 6, 8, 58, 5
LINES_OF_MASKS = 24


def mask_figure(study: Study) -> Drawing | None:
    """Overlap between seeds of one source, as a band, and between sources, as marks."""
    found = [one for one in study.masks.get("kinds", []) if isinstance(one, Mapping) and _overlap(one) is not None]
    if not found:
        return None
    wheres = _rows(found)
    kinds = sorted(dict.fromkeys(str(one.get("name", "")) for one in found), key=lambda name: "seed" not in name)
    shown = wheres[:LINES_OF_MASKS]
    with style():
        figure, (axes,) = new_figure(0.5 * len(shown) + 1.0)
        for row, where in enumerate(shown):
            _masks_of(axes, row, said(where), kinds, [one for one in found if _of_row(one, where)])
        axes.set_ylim(len(shown) - 0.45, -0.75)
        axes.set_yticks([])
        axes.margins(x=0.06)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            "agreement" if all("jaccard" not in one for one in found) else "Jaccard index of pruned positions"
        )
        handles, labels = axes.get_legend_handles_labels()
        there = dict(zip(labels, handles, strict=True))
        figure.legend(there.values(), there.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        svg = svg_of(figure)
    rows = [
        [_setting(one), one.get("name", ""), one.get("a", ""), one.get("b", ""), _overlap(one), one.get("n")]
        for one in found
    ]
    columns = ["setting", "pairs", "a", "b", "overlap", "n"]
    places = decimals([], [row[4] for row in rows])
    texts = [
        [*map(str, row[:4]), number(row[4], max(places, 3)), "-" if row[5] is None else str(row[5])] for row in rows
    ]
    parts = [f"{name}: {_span(found, name)}" for name in kinds]
    return Drawing(
        name="masks",
        title="Overlap of masks",
        caption="The band is what another seed of the same source does alone; only marks to its left are a difference "
        f"between sources. {study.masks.get('note', '')}".strip(),
        alt=f"Overlap of masks. {'; '.join(parts)}.",
        svg=svg,
        columns=columns,
        rows=rows,
        tables=[Table("Overlap of masks", columns, texts, heads=4)],
    )


def _overlap(one: Mapping[str, Any]) -> float | None:
    value = one.get("jaccard", one.get("agreement"))
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The settings within which labels are compared; those of the seeds, where no labels are."""
    between = [_where(one) for one in found if "seed" not in str(one.get("name"))] or [_where(one) for one in found]
    return [where for number, where in enumerate(between) if where not in between[:number]]


def _of_row(one: Mapping[str, Any], row: Mapping[str, str]) -> bool:
    """Whether an overlap belongs to a row: between labels, if just there; between seeds, if of any label there."""
    where = _where(one)
    return where == row or ("seed" in str(one.get("name")) and row.items() <= where.items())


def _where(one: Mapping[str, Any]) -> dict[str, str]:
    where = one.get("where")
    return {str(name): str(label) for name, label in where.items()} if isinstance(where, Mapping) else {}


def _setting(one: Mapping[str, Any]) -> str:
    return said(_where(one))


def _span(found: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [value for one in found if one.get("name") == name and (value := _overlap(one)) is not None]
    return f"{min(values):.3f} to {max(values):.3f}" if values else "none"


def _masks_of(axes: Any, row: int, where: str, kinds: Sequence[str], found: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patches import Rectangle

    axes.text(0, row - 0.3, cut(where, LETTERS), transform=axes.get_yaxis_transform(), va="bottom", fontsize=9)
    for place, kind in enumerate(kinds):
        values = [value for one in found if one.get("name") == kind and (value := _overlap(one)) is not None]
        if not values:
            continue
        seeds = "seed" in kind
        if seeds:
            box = (min(values), row - 0.25), max(values) - min(values), 0.5
            axes.add_patch(Rectangle(*box, facecolor=GREY, alpha=0.3, linewidth=0, zorder=0))
        colour = INK if seeds else COLOURS[(place - 1) % len(COLOURS)]
        face = "none" if seeds else colour
        marker = MARKERS[place % len(MARKERS)]
        height = row + (0.0 if len(kinds) == 1 else -0.12 + 0.24 * place / (len(kinds) - 1))
        axes.scatter(values, [height] * len(values), s=26, marker=marker, facecolor=face, edgecolor=colour, label=kind)


def error_figures(study: Study, across: Axis | None) -> Drawing | None:
    """Mean relative output error by block and kind of linear: a panel a setting, over the compared labels and the seeds."""
    wheres: dict[str, list[Mapping[str, str]]] = {}
    for cell in study.cells:
        if not cell.control and cell.where not in wheres.setdefault(cell.digest, []):
            wheres[cell.digest].append(cell.where)
    sums: dict[tuple[str, str, int], list[float]] = {}
    for row in study.linears:
        error = row["error"]
        if error is None or not math.isfinite(error):
            continue
        for where in wheres.get(str(row["cell"]), []):
            held = said({name: label for name, label in where.items() if across is None or name != across.name})
            sums.setdefault((held, str(row["linear"]), int(row["block"])), []).append(float(error))
    if not sums:
        return None
    means = {key: sum(values) / len(values) for key, values in sums.items()}
    order = [said(where) for where in settings(study, across)]
    panels = sorted({panel for panel, _, _ in means}, key=lambda panel: order.index(panel) if panel in order else 0)
    linears = list(dict.fromkeys(linear for _, linear, _ in means))
    blocks = sorted({block for _, _, block in means})
    over = f"over {across.name} and seeds" if across else "over seeds"
    return Drawing(
        name="error",
        title="Error by block and linear",
        caption=f"Relative output error of each linear, mean {over}; one colour scale (logarithmic where it spans much) for all "
        f"panels.{f' The first {PANELS} of {len(panels)} settings; the table has all.' if len(panels) > PANELS else ''}",
        alt=f"Heat map, {len(linears)} kinds of linear by {len(blocks)} blocks, from {_short(min(means.values()))} to "
        f"{_short(max(means.values()))}. The numbers are in the table below it.",
        svg=_heat(means, panels[:PANELS], linears, blocks),
        columns=["setting", "block", "linear", "error", "cells"],
        rows=[[panel, block, linear, means[panel, linear, block], len(sums[panel, linear, block])]
              for panel, linear, block in sorted(means)],
        tables=[
            Table(
                f"Relative output error, {panel}",
                ["linear", *(f"block {block}" for block in blocks)],
                [[linear, *(_short(means.get((panel, linear, block))) for block in blocks)] for linear in linears],
            )
            for panel in panels
        ],
    )  # fmt: skip


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _heat(
    means: Mapping[tuple[str, str, int], float], panels: Sequence[str], linears: Sequence[str], blocks: Sequence[int]
) -> str:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    low, high = min(means.values()), max(means.values())
    logarithmic = low > 0 and high > 10 * low

    def place(value: float) -> float:
        return math.log10(value) if logarithmic else value

    def back(value: float) -> float:
        return 10**value if logarithmic else value

    span = (place(low), max(place(high), place(low) + 1e-9))
    with style():
        figure, axes = new_figure((0.25 * len(linears) + 0.5) * len(panels) + 0.75, len(panels))
        for axis, panel in zip(axes, panels, strict=True):
            found = [[means.get((panel, linear, block)) for block in blocks] for linear in linears]
            text = [["" if value is None else _short(value).lstrip("0") for value in row] for row in found]
            cells = [[None if value is None else place(value) for value in row] for row in found]
            heat_cells(axis, cells, span, text if len(blocks) <= NUMBERED else None)
            axis.set_yticks(range(len(linears)), [cut(name.removeprefix("self_attn."), 16) for name in linears])
            step = math.ceil(len(blocks) / 12)
            axis.set_xticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
            axis.set_title(cut(panel, LETTERS), fontsize=9, loc="left", pad=3)
        axes[-1].set_xlabel("block")
        shades = [step / (STEPS - 1) for step in range(STEPS)]
        values = [back(span[0] + shade * (span[1] - span[0])) for shade in shades]
        patches = [
            Patch(color=colormaps["cividis"](shade), label=_short(value))
            for shade, value in zip(shades, values, strict=True)
        ]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=STEPS, frameon=False, fontsize=9, handlelength=1.2,
            columnspacing=1,
        )  # fmt: skip
        return svg_of(figure)
