"""What every figure shares: SVG by matplotlib, readable on a phone, in light and dark and print, for every eye."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, which colour-blind people tell apart, less the yellow and the black that a page may swallow."""
GREY = "#888888"
"""Seen on white and on black."""
MARKERS, LINES = "osD^vP", ("-", "--", "-.", ":")
INK = "#010203"
"""Stands for the page's own text colour, which is light or dark."""
PRINTED = "#1b1f24"
"""The text colour of a figure in a file of its own, on white."""
WIDTH, NAME = 4.6, 22


@dataclass(frozen=True)
class Table:
    """Numbers as text: ``columns`` and ``rows`` of as many cells; the first ``heads`` of a row say what it is."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heads: int = 1


@dataclass(frozen=True)
class Drawing:
    """A figure and what it draws: ``svg`` as matplotlib wrote it, ``columns`` and ``rows`` for the CSV beside it.

    ``name`` is a file's stem; ``alt`` says in words what is seen; ``tables`` what the page shows for those who cannot.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    tables: Sequence[Table] = ()


@contextmanager
def style() -> Iterator[None]:
    """Draw in here. Letters the font lacks are the reader's own fonts' affair, not worth a warning."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "secateur",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height: float, rows: int = 1, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of the common width and its axes, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, **options)
    return figure, list(axes[:, 0])


def svg_of(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    return stream.getvalue()


def inline(svg: str, prefix: str, alt: str = "") -> str:
    """An SVG file as a part of a page: no prologue, no namespaces, ids of its own, the page's text colour.

    Only what stands in tags is changed: matplotlib escapes every ``<`` and ``>`` of a text.
    """

    def changed(tag: re.Match[str]) -> str:
        text = re.sub(r'\s(xmlns(:\w+)?)="[^"]*"', "", tag[0])
        text = re.sub(r'\sid="([^"]+)"', rf' id="{prefix}\1"', text)
        text = text.replace("url(#", f"url(#{prefix}").replace('xlink:href="#', f'href="#{prefix}')
        return text.replace(INK, "currentColor")

    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", changed, svg)
    size = re.compile(r' (width|height)="[^"]*pt"')
    said = f' role="img" aria-label="{html.escape(alt)}"' if alt else ""
    return re.sub(r"<svg[^>]*>", lambda tag: size.sub("", tag[0])[:-1] + said + ">", svg, count=1)


def standalone(svg: str) -> str:
    """An SVG file for a document: dark letters on white, whatever lies behind it."""
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    svg = re.sub(r"<[^>]+>", lambda tag: tag[0].replace(INK, PRINTED), svg)
    return re.sub(r"<svg[^>]*>", lambda tag: tag[0] + white, svg, count=1)


def printable(text: str) -> str:
    """Without characters that are no letters: line breaks, controls, those that turn the direction of writing."""
    return "".join(c if c.isprintable() else "?" for c in text)


def cut(text: str, length: int = NAME) -> str:
    """A name for a figure: its beginning and its end, where it is long."""
    text = printable(text)
    tail = min(8, length // 3)
    return text if len(text) <= length else f"{text[: length - tail - 1]}…{text[-tail:]}"


def short_names(names: Sequence[str], length: int = NAME) -> list[str]:
    """Names, cut where they are long; with their numbers where they are then the same."""
    short = [cut(name, length) for name in names]
    return [f"{number}: {name}" if short.count(name) > 1 else name for number, name in enumerate(short, 1)]


def luminance(colour: str) -> float:
    from matplotlib.colors import to_rgb

    return sum(weight * part**2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True))


def look(number: int) -> dict[str, Any]:
    """How the ``number``-th line looks: no two alike, by colour alone or without it."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[(number + turn) % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.6,
    }


def plain_log_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of an x or y axis (``axes.xaxis``) over ``10**low`` to ``10**high``: 1, 2, 5 times powers of ten (or powers
    alone over a wide range), as plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    steps = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    kept = [tick for tick in ticks if 10**low / 1.05 <= tick <= 10**high * 1.05]
    if len(kept) < 2:
        kept = [10**low, 10**high] if high - low > 0.1 else kept or [10**low]
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))


def bare(axes: Any) -> None:
    """No spines and no tick marks."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def heat_cells(
    axes: Any,
    rows: Sequence[Sequence[float | None]],
    span: tuple[float, float],
    text: Sequence[Sequence[str]] | None = None,
) -> None:
    """Squares in cividis between ``span``, missing ones hatched; ``text`` is written on them."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    low, high = span
    colours = colormaps["cividis"]
    for one, row in enumerate(rows):
        for other, value in enumerate(row):
            if value is None:
                continue
            colour = to_hex(colours((value - low) / max(high - low, 1e-9)))
            axes.add_patch(Rectangle((other - 0.5, one - 0.5), 1, 1, color=colour))
            if text:
                ink = "white" if luminance(colour) < 0.2 else "black"
                axes.text(other, one, text[one][other], ha="center", va="center", color=ink, fontsize=9)
    axes.set_xlim(-0.5, max(map(len, rows)) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    bare(axes)
