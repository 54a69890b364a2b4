"""The page of one or several studies: one HTML file that needs no network, figures and tables in files beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import StoreError, UsageError
from secateur.pipeline.store import disk_error
from secateur.reports.drawing import Drawing, inline, standalone
from secateur.reports.page import render, script
from secateur.reports.study_answer_figures import answer_figure, paired_figure
from secateur.reports.study_answers import VERDICTS, interval, levels_table, probability
from secateur.reports.study_fact_figures import fact_figure
from secateur.reports.study_facts import Cell, Study
from secateur.reports.study_folder import read_study
from secateur.reports.study_inside_figures import error_figures, mask_figure
from secateur.reports.study_score_figures import curve_figures, score_figure
from secateur.reports.study_scores import compared_axis, said, score_table
from secateur.reports.study_tables import csv_text, latex_table, markdown_table

PAGE, FIGURES = "report.html", "figures"
METRICS_DRAWN, CARDS, LETTERS, HOLES = 8, 4, 1200, 200
MARK = '<meta name="generator" content="secateur">'

Note = Callable[[str], None]


def report(folders: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Read studies, write their page and figures; returns the place of the page and the answers.

    Without ``out`` the page of one study is ``report.html`` in its folder, its figures in ``figures`` there; else the
    figures lie in a folder beside ``out``, by study where there are several. Raises ``UsageError`` for a folder that is
    no study or cannot be read, ``StoreError`` when the page cannot be written.
    """
    if not folders:
        raise UsageError("No study was given: give the folder that `secateur study` wrote, or several.")
    if out is None and len(folders) > 1:
        raise UsageError("Several studies make a page of none of their folders: say where with --out FILE.")
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file, such as {out / PAGE}.")
    page = out or folders[0] / PAGE
    if not page.suffix:
        page = page.with_name(f"{page.name}.html")  # browsers show a page by its name
    _refuse_foreign(page)
    beside = folders[0] / FIGURES if out is None else page.with_name(f"{page.stem}-{FIGURES}")
    studies = [read_study(folder) for folder in folders]
    parts = [_part(study, number, len(studies)) for number, study in enumerate(studies, 1)]
    try:
        for number, part in enumerate(parts, 1):
            _write_figures(beside if len(parts) == 1 else beside / f"study-{number}", part)
        page.parent.mkdir(parents=True, exist_ok=True)
        unnamed = page.with_name(f".{page.name}.partial")
        unnamed.write_text(_page(parts), encoding="utf-8")
        unnamed.replace(page)
    except OSError as error:
        raise disk_error(error, page.parent) from error
    return {"page": str(page), "figures": str(beside), "studies": [_told(study) for study in studies]}


def _refuse_foreign(page: Path) -> None:
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise StoreError(
            f"{page} exists and is no page of Secateur's; it is not overwritten. Give another --out, or move it."
        )


def _told(study: Study) -> dict[str, Any]:
    return {
        "folder": str(study.folder),
        "question": study.facts.question,
        "finished": study.manifest is not None,
        "notes": list(study.notes),
        "answers": [answer.model_dump(mode="json", exclude_unset=True) for answer in study.answers],
    }


def _page(parts: Sequence[dict[str, Any]]) -> str:
    from markupsafe import Markup

    text, allowed = script("copy.js")
    return render("study.html.jinja", parts=parts, script=Markup(text), allowed=Markup(allowed), verdicts=VERDICTS)


def _part(study: Study, number: int, total: int) -> dict[str, Any]:
    """One study's part of the page; ``drawn`` has every figure, shown or only written beside."""
    from markupsafe import Markup

    across = compared_axis(study)
    declared = len(study.facts.comparisons) or len(study.answers)
    answers = [answer_figure(answer, index) for index, answer in enumerate(study.answers)]
    paired = [paired_figure(answer, index) for index, answer in enumerate(study.answers)]
    facts = [fact_figure(answer, index) for index, answer in enumerate(study.answers)]
    scores = [score_figure(study, index, across) for index in range(min(len(study.metrics), METRICS_DRAWN))]
    groups = {
        "answers": answers,
        "facts": facts,
        "paired": paired[:declared],
        "paired_further": paired[declared:],
        "scores": scores,
        "curves": curve_figures(study, across),
        "masks": [mask_figure(study)],
        "errors": [error_figures(study, across)],
    }
    prefix = f"s{number}-"

    def shown(drawing: Drawing | None) -> dict[str, Any] | None:
        if drawing is None:
            return None
        svg = Markup(inline(drawing.svg, f"{prefix}{drawing.name}-", drawing.alt))
        return {"id": f"{prefix}{drawing.name}", "drawing": drawing, "svg": svg}

    main = score_table(study, study.facts.metric.name, across)
    primary = study.primary
    holes = sorted(filter(None, (_hole(study, cell) for cell in study.cells)), key=lambda hole: hole[2])
    figures = {name: [shown(one) for one in ones] for name, ones in groups.items()}
    return {
        "id": f"study-{number}",
        "level": 1 if total == 1 else 2,
        "study": study,
        "facts": study.facts,
        "notes": study.notes,
        "finished": study.manifest is not None,
        "primary": primary,
        "answers": [
            {
                "answer": answer,
                "interval": interval(answer),
                "primary": answer is primary,
                "figure": figures["answers"][index],
                "facts": figures["facts"][index],
                "levels": levels_table(answer),
            }
            for index, answer in enumerate(study.answers)
        ],
        "figures": {name: [one for one in ones if one] for name, ones in figures.items()},
        "drawn": [one for ones in groups.values() for one in ones if one],
        "main": main,
        "markdown": markdown_table(main),
        "latex": latex_table(main),
        "further": [score_table(study, metric, across) for metric in study.metrics[METRICS_DRAWN:]],
        "samples": _samples(study),
        "cost": _cost(study),
        "holes": holes[:HOLES],
        "more_holes": max(len(holes) - HOLES, 0),
        "declared": declared,
        "provenance": _provenance(study),
        "probability": probability,
    }


def _write_figures(folder: Path, part: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {"main.md": part["markdown"], "main.tex": part["latex"]}
    for drawing in part["drawn"]:
        files[f"{drawing.name}.svg"] = standalone(drawing.svg)
        files[f"{drawing.name}.csv"] = csv_text(drawing.columns, drawing.rows)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _samples(study: Study) -> list[dict[str, Any]]:
    """A few texts a set, cut where they are long."""

    def texts(ones: Any) -> list[dict[str, Any]]:
        found = [one if isinstance(one, dict) else {"text": one} for one in (ones or [])[:CARDS]]
        return [
            {
                "text": str(one.get("text", ""))[:LETTERS],
                "cut": len(str(one.get("text", ""))) > LETTERS,
                "reason": str(one.get("reason") or ""),
                "value": one.get("value") if isinstance(one.get("value"), int | float) else None,
            }
            for one in found
        ]

    return [
        {
            "label": label,
            "counts": ", ".join(
                f"{found[name]:,} {name}" for name in ("samples", "tokens") if isinstance(found.get(name), int)
            ),
            "kinds": {kind: texts(found.get(kind)) for kind in ("kept", "dropped")},
        }
        for label, found in study.samples.items()
    ]


def _cost(study: Study) -> dict[str, str]:
    cost = study.facts.cost

    def time(seconds: float) -> str:
        units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        size, name = next((one for one in units if seconds >= one[0]), units[-1])
        return f"{seconds / size:,.1f} {name}"

    rows = {
        "wall time": time(cost["seconds"]) if isinstance(cost.get("seconds"), int | float) else None,
        "CPU time": time(cost["cpu_seconds"]) if isinstance(cost.get("cpu_seconds"), int | float) else None,
        "peak memory": f"{cost['peak_gib']:.2f} GiB" if isinstance(cost.get("peak_gib"), int | float) else None,
        "cells": cost.get("cells"),
        "done": cost.get("done"),
        "failed": cost.get("failed"),
        "excluded beforehand": study.facts.excluded or None,
        "repeats": f"{len(study.facts.repeats)} (seeds {', '.join(map(str, study.facts.repeats))})",
    }
    return {name: str(value) for name, value in rows.items() if value is not None}


def _hole(study: Study, cell: Cell) -> list[str]:
    """A cell without its primary score, as a row; empty when there is one."""
    metric = study.facts.metric.name
    if cell.status == "done":
        if cell.values.get(metric) is not None:
            return []
        return [_name(cell), cell.seed, "done", f"It has no finite value of {metric}."]
    return [_name(cell), cell.seed, cell.status, cell.error or "No reason is recorded."]


def _name(cell: Cell) -> str:
    where = said(cell.where) if cell.where else ""
    return ", ".join(part for part in (cell.control, where) if part) or "all"


def _provenance(study: Study) -> dict[str, Any]:
    facts, manifest = study.facts, study.manifest or {}
    model = facts.model
    name = model.get("name", "") if isinstance(model, dict) else model
    command = facts.command if isinstance(facts.command, str) else " ".join(map(str, facts.command or []))
    rows = {
        "model": name,
        "model digest": model.get("digest") if isinstance(model, dict) else None,
        "model revision": model.get("revision") if isinstance(model, dict) else None,
        "study digest": facts.digest,
        "measured on": "; ".join(facts.evaluation),
        "Secateur": manifest.get("secateur") or facts.environment.get("secateur"),
        "finished": manifest.get("finished") if manifest else "no",
        "command": command,
        **{f"environment: {key}": _flat(value) for key, value in facts.environment.items()},
        **{f"SHA-256 of {key}": value for key, value in manifest.get("files", {}).items()},
    }
    return {
        "rows": {key: str(value) for key, value in rows.items() if value not in (None, "")},
        "file": study.text,
        "recipe": json.dumps(facts.recipe, indent=1, ensure_ascii=False) if facts.recipe else "",
        "declared": json.dumps(facts.comparisons, indent=1, ensure_ascii=False) if facts.comparisons else "",
    }


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(one)}" for key, one in value.items())
    return str(value)
