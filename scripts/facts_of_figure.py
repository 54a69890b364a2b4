"""Give a published correlation its facts back from the figure that was published with it.

    git show 185f03d^:docs/results/evidence/english/similarity/facts-1.svg > facts-1.svg
    python scripts/facts_of_figure.py facts-1.svg docs/results/evidence/english/similarity --comparison 1

Evidence published before decision 0011 kept what its correlations knew of the calibration sets in a figure only: a dot a set, placed
to a millionth of a point. The figure's places become numbers by the ticks of its axes, and whether a dot is the set that we think
it is can be checked: its height must be the perplexity that ``results.parquet`` has of the same cell. Writes ``facts.csv``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from publish_evidence import FACTS, published_rows
from secateur.studies.study_file import load_study

SVG = "{http://www.w3.org/2000/svg}"
OFF = 1e-7
"""How far a dot may lie from its height, of a panel's height: six decimals of a point are kept."""
Dots = list[tuple[float, float]]


def panels_of(figure: ElementTree.Element) -> list[tuple[Dots, Dots]]:
    """Of each panel, the dots, label by label, and the ticks of ``x``: place and number."""
    found = []
    for axes in figure.iter(f"{SVG}g"):
        if not re.fullmatch(r"axes_\d+", axes.get("id", "")):
            continue
        parts = {part.get("id", ""): part for part in axes.iter(f"{SVG}g")}
        dots = [dot for name, part in parts.items() if name.startswith("PathCollection") for dot in _dots(part)]
        ticks = [tick for name, part in parts.items() if name.startswith("xtick") for tick in _tick(part)]
        found.append((dots, ticks))
    return found


def _dots(part: ElementTree.Element) -> Dots:
    return [(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in part.iter(f"{SVG}use")]


def _tick(part: ElementTree.Element) -> Dots:
    """The tick's place and its number; nothing for one without."""
    numbers = [text.text or "" for text in part.iter(f"{SVG}text")]
    places = _dots(part)
    return [(places[0][0], float(numbers[0].replace("\N{MINUS SIGN}", "-")))] if numbers and places else []


def numbers_of(places: list[float], ticks: Dots) -> list[float]:
    """Places on a linear axis as its numbers. Raises ``SystemExit`` where the ticks are not on a line."""
    at, numbers = np.array(ticks).T
    slope, start = np.polyfit(at, numbers, 1)
    if len(ticks) < 2 or np.abs(slope * at + start - numbers).max() > 1e-5 * np.ptp(numbers):
        raise SystemExit(f"The ticks {ticks} are not those of a linear axis.")
    return [slope * place + start for place in places]


def misplaced(places: list[float], values: list[float]) -> float:
    """The farthest that a dot is from where its value would be on a linear or logarithmic axis, of the dots' whole height."""
    heights = np.array(places)
    found = []
    for scaled in (np.array(values), np.log(values)):
        line = np.polyfit(scaled, heights, 1)
        found.append(np.abs(np.polyval(line, scaled) - heights).max() / np.ptp(heights))
    return float(min(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    parser.add_argument("study", type=Path)
    parser.add_argument("--comparison", type=int, default=1)
    asked = parser.parse_args()
    study = load_study(str(asked.study / "study.yaml"))
    axes, told = study.spec.axes, study.spec.comparisons[asked.comparison - 1]
    others = [name for name in axes if name != told.axis]
    values = {(row.labels, row.seed): row.values["perplexity"] for row in published_rows(asked.study, list(axes))}
    settings = list(itertools.product(*(axes[name].labels for name in others)))
    panels = panels_of(ElementTree.parse(asked.figure).getroot())
    if len(panels) != len(settings):
        raise SystemExit(f"{asked.figure} has {len(panels)} panels, the study {len(settings)} settings.")
    ticks = panels[-1][1]  # the panels share their axis, which has its numbers below the last
    rows = []
    for setting, (dots, _) in zip(settings, panels, strict=True):
        where = dict(zip(others, setting, strict=True))
        keys = [
            (tuple(where.get(name, label) for name in axes), seed)
            for label in axes[told.axis].labels
            for seed in study.spec.repeats
        ]
        off = misplaced([y for _, y in dots], [values[key] for key in keys])
        if off > OFF:
            raise SystemExit(f"{setting}: a dot is {off:.1e} of the height from its cell's perplexity.")
        print(f"{', '.join(setting)}: {len(dots)} dots, at most {off:.1e} of the height from their cells' perplexities")
        facts = numbers_of([x for x, _ in dots], ticks)
        rows += [[*labels_, seed, told.fact, fact] for (labels_, seed), fact in zip(keys, facts, strict=True)]
    with (asked.study / FACTS).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([[*axes, "seed", "fact", "value"], *rows])


if __name__ == "__main__":
    main()
