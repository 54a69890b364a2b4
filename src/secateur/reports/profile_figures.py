"""The figures of a profile as SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.reports.drawing import (
    COLOURS,
    GREY,
    INK,
    heat_cells,
    inline,
    look,
    luminance,
    new_figure,
    plain_log_ticks,
    short_names,
    style,
    svg_of,
)

LANGUAGES_SHOWN = 5


def figures(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each figure with ``title``, ``caption`` and ``svg``; those that nothing was measured for are left out."""
    drawn = []
    for number, (title, caption, draw) in enumerate(
        (
            ("Perplexity", "Samples by perplexity under the model; the stroke is the median.", _perplexities),
            (
                "Languages",
                "Shares of samples by the language (ISO 639) that py3langid takes them for; code gets some language too.",
                _languages,
            ),
            (
                "Directions filled, by block",
                "Effective rank of the Gram of what enters the linears of each block of the dense model, over its width "
                "(mean over the block's distinct inputs).",
                _ranks,
            ),
            (
                "Gram spectra",
                "Eigenvalues over the largest, log10, of the first input of three blocks; left the largest, right the "
                "smallest. A line that falls early fills few directions.",
                _spectra,
            ),
            (
                "Overlap of masks",
                "Jaccard index of the positions that Wanda prunes with a half of one set and a half of another; on the "
                "diagonal with the two halves of one.",
                _mask_overlap,
            ),
            ("Overlap of wording", "Jaccard index of the distinct word 3-grams of every two sets.", _wording_overlap),
        )
    ):
        with style():
            svg = draw(found)
        if svg is not None:
            drawn.append({"title": title, "caption": caption, "svg": inline(svg, f"f{number}-", f"{title}. {caption}")})
    return drawn


def _names(found: Mapping[str, Any]) -> list[str]:
    return short_names([one["name"] for one in found["sets"]])


def _details(found: Mapping[str, Any], family: str, name: str) -> list[Any]:
    return [one["families"].get(family, {}).get("details", {}).get(name) for one in found["sets"]]


def _perplexities(found: Mapping[str, Any]) -> str | None:
    values = _details(found, "likelihood", "perplexities")
    known = [value for one in values if one for value in one]
    if not known:
        return None
    low, high = math.log10(min(known)), math.log10(max(known))
    span = max(high - low, 0.05)
    edges = [10 ** (low + span * step / 30) for step in range(31)]
    figure, axes = new_figure(0.62 * len(values) + 0.6, len(values), sharex=True)
    for number, (axis, one, name) in enumerate(zip(axes, values, _names(found), strict=True)):
        one = one or []
        axis.hist(one, bins=edges, color=COLOURS[number % len(COLOURS)])
        if one:
            axis.axvline(sorted(one)[len(one) // 2], color=INK, linewidth=1.5)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_title(name, fontsize=10, loc="left", pad=2)
    for axis in axes[:-1]:
        axis.tick_params(axis="x", which="both", length=0)
    axes[-1].set_xscale("log")
    axes[-1].set_xlim(edges[0] / 1.05, edges[-1] * 1.05)
    plain_log_ticks(axes[-1].xaxis, low, high)
    axes[-1].set_xlabel("perplexity (log scale)")
    return svg_of(figure)


def _languages(found: Mapping[str, Any]) -> str | None:
    counts = [one or {} for one in _details(found, "languages", "languages")]
    if not any(counts):
        return None
    totals: dict[str, float] = {}
    for one in counts:
        for language, count in one.items():
            totals[language] = totals.get(language, 0) + count / sum(one.values())
    shown = sorted(totals, key=lambda language: (-totals[language], language))[:LANGUAGES_SHOWN]
    figure, (axis,) = new_figure(0.42 * len(counts) + 1.0)
    left = [0.0] * len(counts)
    for number, language in enumerate([*shown, "other"]):
        shares = [_share(one, language, shown) for one in counts]
        if not any(shares):
            continue
        colour = COLOURS[number % len(COLOURS)] if language != "other" else GREY
        bars = axis.barh(range(len(counts)), shares, left=left, color=colour, label=language, edgecolor="white")
        labels = [f"{language} {share:.0%}" if share > 0.17 else "" for share in shares]
        dark = luminance(colour) < 0.3
        axis.bar_label(bars, labels, label_type="center", color="white" if dark else "black", fontsize=9)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axis.set_yticks(range(len(counts)), _names(found))
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    figure.legend(loc="outside lower center", ncols=6, frameon=False, handlelength=1, columnspacing=1, fontsize=9)
    return svg_of(figure)


def _share(counts: Mapping[str, int], language: str, shown: Sequence[str]) -> float:
    total = sum(counts.values()) or 1
    if language == "other":
        return sum(count for name, count in counts.items() if name not in shown) / total
    return counts.get(language, 0) / total


def _ranks(found: Mapping[str, Any]) -> str | None:
    spectra = _details(found, "spectra", "spectra")
    if not any(spectra):
        return None
    figure, (axis,) = new_figure(2.5 + 0.2 * ((len(spectra) + 1) // 2))
    for number, (one, name) in enumerate(zip(spectra, _names(found), strict=True)):
        shares: dict[int, list[float]] = {}
        for spectrum in one or []:
            shares.setdefault(spectrum["block"], []).append(spectrum["effective_rank"] / spectrum["inputs"])
        means = [sum(shares[block]) / len(shares[block]) for block in sorted(shares)]
        axis.plot(sorted(shares), means, label=name, **look(number))
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("block")
    axis.set_ylabel("effective rank / width")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return svg_of(figure)


def _spectra(found: Mapping[str, Any]) -> str | None:
    spectra = _details(found, "spectra", "spectra")
    blocks = sorted({spectrum["block"] for one in spectra for spectrum in one or []})
    if not blocks:
        return None
    chosen = sorted({blocks[0], blocks[len(blocks) // 2], blocks[-1]})
    figure, axes = new_figure(1.3 * len(chosen) + 0.6 + 0.2 * ((len(spectra) + 1) // 2), len(chosen), sharex=True)
    for axis, block in zip(axes, chosen, strict=True):
        for number, one in enumerate(spectra):
            curve = next((entry["curve"] for entry in one or [] if entry["block"] == block), [])
            ranks = [step / max(len(curve) - 1, 1) for step in range(len(curve))]
            how = look(number) | {"marker": "", "label": _names(found)[number] if block == chosen[0] else None}
            axis.plot(ranks, curve, **how)
        axis.set_title(f"block {block}", fontsize=10, loc="left", pad=2)
    axes[-1].set_xlabel("rank of the eigenvalue, over the width")
    axes[len(chosen) // 2].set_ylabel("log10 of eigenvalue / largest")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return svg_of(figure)


def _mask_overlap(found: Mapping[str, Any]) -> str | None:
    masks = found["between"]["masks"]
    return _heat_map(masks["halves"], _names(found)) if masks else None


def _wording_overlap(found: Mapping[str, Any]) -> str | None:
    rows = found["between"]["jaccard"]
    shown = [[None if one == other else value for other, value in enumerate(row)] for one, row in enumerate(rows)]
    return _heat_map(shown, _names(found)) if len(rows) > 1 else None


def _heat_map(rows: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    known = [value for row in rows for value in row if value is not None]
    figure, (axis,) = new_figure(0.5 * len(names) + 1.1)
    digits = [
        ["" if value is None else f"{value:.3f}".lstrip("0") if value < 1 else "1" for value in row] for row in rows
    ]
    span = (min(known), max(known)) if known else (0.0, 1.0)
    heat_cells(axis, rows, span, digits if len(names) <= 8 else None)
    axis.set_yticks(range(len(names)), [f"{name}  {number}" for number, name in enumerate(names, 1)])
    axis.set_xticks(range(len(names)), [str(number) for number in range(1, len(names) + 1)])
    return svg_of(figure)
