"""Put finished studies where readers find them: the answers in sentences, the numbers, the figures, the cost.

    secateur study self-generated --out build/evidence/self-generated
    python scripts/publish_evidence.py build/evidence/* --out docs/results/evidence/reference

    python scripts/publish_evidence.py --again docs/results/evidence/*/*

Of every study it writes ``OUT/NAME`` (the study file, ``answers.json``, ``results.parquet``, ``cost.json``, the main table, the
figures of what was declared, and in ``facts.csv`` what a correlation knew of the sets), and then ``OUT/README.md`` of all that are there,
after what ``OUT/about.md`` says. ``--again`` derives the answers of what was published before, and their figures, from the published
results, as the comparisons are made now; correlations whose facts were not published are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from secateur.reports.drawing import Drawing, standalone
from secateur.reports.study_answer_figures import answer_figure
from secateur.reports.study_fact_figures import fact_figure
from secateur.reports.study_facts import Answer, Study
from secateur.reports.study_folder import read_study
from secateur.reports.study_inside_figures import mask_figure
from secateur.reports.study_score_figures import curve_figures, score_figure
from secateur.reports.study_scores import compared_axis, score_table
from secateur.reports.study_tables import markdown_table
from secateur.studies.files import study_names, study_text
from secateur.studies.results import answers_of
from secateur.studies.study_file import load_study
from secateur.studies.table import Row

KEPT = ("study.yaml", "results.parquet")
FACTS = "facts.csv"
ANSWERS, TABLE, COST, ABOUT, README = "answers.json", "main.md", "cost.json", "about.md", "README.md"


def published(study: Study, final: Path) -> None:
    """One study's folder, made anew beside the old one and then put into its place."""
    if study.manifest is None:
        raise SystemExit(f"{study.folder} is not finished: run its study again first.")
    source = study.folder.resolve()
    if final.resolve() == source or final.resolve() in source.parents:
        raise SystemExit(f"{final} would take the place of the study's own folder: name another --out.")
    target = final.with_name(f".{final.name}.partial")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in KEPT:
        shutil.copyfile(study.folder / name, target / name)
    answers = json.loads((study.folder / ANSWERS).read_text(encoding="utf-8"))
    write_facts(study, answers, target / FACTS)
    write_answers(answers, target / ANSWERS)
    across = compared_axis(study)
    (target / TABLE).write_text(markdown_table(score_table(study, study.facts.metric.name, across)), encoding="utf-8")
    draw(drawings(study), target)
    told = {
        "cost": study.facts.cost,
        "environment": study.facts.environment,
        "comparisons": len(study.facts.comparisons),
    }
    (target / COST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    target.rename(final)


def write_facts(study: Study, answers: list[dict[str, Any]], path: Path) -> None:
    """The facts of the sets that correlations ranked: by the label of every axis, and seed."""
    axes = [axis.name for axis in study.facts.axes]
    rows = dict.fromkeys(
        (*(group["where"].get(axis, point["label"]) for axis in axes), point["seed"], answer["fact"], point["fact"])
        for answer in answers
        if answer["kind"] == "correlation"
        for group in answer["groups"]
        for point in group["points"]
    )
    if rows:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([[*axes, "seed", "fact", "value"], *rows])


def derived_again(part: Path) -> None:
    """The answers of a published study, from its results."""
    study = load_study(str(part / "study.yaml"))
    facts = (part / FACTS).exists()
    kept = [number for number, one in enumerate(study.comparisons) if facts or one.kind != "correlation"]
    study = replace(study, comparisons=[study.comparisons[number] for number in kept])
    answers = answers_of(study, published_rows(part, list(study.spec.axes)))
    for figure in (*part.glob("answer-*.svg"), *part.glob("facts-*.svg")):
        figure.unlink()
    draw(answer_drawings([Answer.model_validate(answer) for answer in answers[: len(kept)]]), part)
    write_answers(answers, part / ANSWERS)
    told = _told(part) | {"comparisons": len(kept)}
    (part / COST).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def published_rows(part: Path, axes: list[str]) -> list[Row]:
    """The cells of ``results.parquet``, without the controls, with the facts of their sets."""
    values: dict[tuple[tuple[str, ...], int], dict[str, float]] = {}
    for row in pq.read_table(part / "results.parquet").to_pylist():
        if not row["control"]:
            own = values.setdefault((tuple(row[axis] for axis in axes), row["seed"]), {})
            own |= {} if row["value"] is None else {row["metric"]: row["value"]}
    facts: dict[tuple[tuple[str, ...], int], dict[str, float]] = {}
    if (part / FACTS).exists():
        with (part / FACTS).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                own = facts.setdefault((tuple(row[axis] for axis in axes), int(row["seed"])), {})
                own[row["fact"]] = float(row["value"])
    return [Row(labels, seed, found, facts.get((labels, seed), {})) for (labels, seed), found in values.items()]


def write_answers(answers: list[dict[str, Any]], path: Path) -> None:
    for group in (group for answer in answers for group in answer["groups"]):
        group.pop("pairs", None)  # they follow from the results
        group.pop("points", None)
    path.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


def drawings(study: Study) -> list[Drawing]:
    """Of the declared comparisons, the primary metric, and the masks."""
    across = compared_axis(study)
    found = [score_figure(study, 0, across), *curve_figures(study, across), mask_figure(study)]
    return [*answer_drawings(study.answers[: len(study.facts.comparisons)]), *(one for one in found if one)]


def answer_drawings(answers: Sequence[Answer]) -> list[Drawing]:
    """What was found, and for correlations the facts it was found of."""
    found = [draw(answer, index) for draw in (answer_figure, fact_figure) for index, answer in enumerate(answers)]
    return [drawing for drawing in found if drawing]


def draw(drawings: Sequence[Drawing], folder: Path) -> None:
    for drawing in drawings:
        (folder / f"{drawing.name}.svg").write_text(standalone(drawing.svg), encoding="utf-8")


def readme(out: Path, title: str) -> str:
    """All that is under ``out``, the answers first."""
    parts = [part for part in sorted(out.iterdir()) if (part / COST).exists()]
    costs = [_told(part)["cost"] for part in parts]
    seconds, cells = sum(cost["cpu_seconds"] for cost in costs), sum(cost["done"] for cost in costs)
    lines = [
        f"# {title}",
        "",
        f"{len(parts)} {'study' if len(parts) == 1 else 'studies'}, {cells:,} cells, {seconds / 3600:.1f} CPU-hours.",
        "",
    ]
    if (out / ABOUT).exists():
        lines += [(out / ABOUT).read_text(encoding="utf-8").strip(), ""]
    for part in parts:
        lines += _section(part)
    return "\n".join(lines)


def _told(part: Path) -> dict[str, Any]:
    return json.loads((part / COST).read_text(encoding="utf-8"))


def _study(part: Path) -> str:
    """The study as the command takes it: by name where it is one of the package's."""
    own = part / "study.yaml"
    same = part.name in study_names() and study_text(part.name) == own.read_text(encoding="utf-8")
    return part.name if same else own.as_posix()


def _section(part: Path) -> list[str]:
    answers, told = json.loads((part / ANSWERS).read_text(encoding="utf-8")), _told(part)
    cost = told["cost"]
    hours = cost["cpu_seconds"] / 3600
    lines = [f"## {part.name}", "", f"    secateur study {_study(part)}", ""]
    lines += [f"{cost['done']} cells ({cost['failed']} failed), {hours:.2f} CPU-hours.", ""]
    for answer in answers[: told["comparisons"]]:  # as declared; then come the same by further metrics
        lines.append(f"- *{answer['question']}* **{answer['verdict']}**: {answer['sentence']}")
    lines += [
        "",
        f"![{part.name}]({part.name}/{min(part.glob('answer-*.svg')).name})",
        "",
        (part / TABLE).read_text(encoding="utf-8").strip(),
        "",
    ]
    figures = ", ".join(f"[{path.stem}]({part.name}/{path.name})" for path in sorted(part.glob("*.svg")))
    return [*lines, f"Figures: {figures}.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--title", default="Evidence on the bundled model")
    asked = parser.parse_args()
    if asked.again:
        for part in (part for part in asked.folders if (part / COST).exists()):
            derived_again(part)
        for out in {part.parent for part in asked.folders}:
            title = (out / README).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            (out / README).write_text(readme(out, title), encoding="utf-8")
        return
    if asked.out is None:
        parser.error("--out is needed: the folder to publish into.")
    for folder in asked.folders:
        published(read_study(folder), asked.out / folder.resolve().name)
    (asked.out / README).write_text(readme(asked.out, asked.title), encoding="utf-8")


if __name__ == "__main__":
    main()
