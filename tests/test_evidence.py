"""What docs/results/evidence says follows from the results beside it, and the script that puts it there works."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from made_study import make_study
from secateur.evaluation.metrics import HIGHER, better
from secateur.studies.study_file import load_study
from secateur.studies.table import Table

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = sorted(path.parent for path in (ROOT / "docs" / "results" / "evidence").glob("*/*/answers.json"))
NUMBERS = ("estimate", "low", "high", "verdict", "sentence")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import publish_evidence

    yield publish_evidence
    sys.modules.pop("publish_evidence", None)


def test_both_models_have_evidence():
    assert {folder.parent.name for folder in PUBLISHED} == {"reference", "english"}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_published_answers_follow_from_the_published_results(script, folder):
    spec = load_study(str(folder / "study.yaml"))
    axes = {name: list(axis.labels) for name, axis in spec.spec.axes.items()}
    numbers = {name: axis.numbers for name, axis in spec.spec.axes.items()}
    rows = script.published_rows(folder, list(axes))
    assert len(spec.spec.repeats) >= 10
    answers = json.loads((folder / "answers.json").read_text())
    assert (folder.parent / "README.md").read_text().count(answers[0]["sentence"]) == 1
    facts = (folder / "facts.csv").exists()  # what was published before them has no correlations any more
    comparisons = [one for one in spec.comparisons if facts or one.kind != "correlation"]
    assert json.loads((folder / "cost.json").read_text())["comparisons"] == len(comparisons)
    for comparison, said in zip(comparisons, answers, strict=False):
        metric = said["metric"]
        found = comparison.answered(Table(axes, numbers, rows, metric, 1.0 if better(metric) == HIGHER else -1.0))
        for name in NUMBERS:
            assert found[name] == (pytest.approx(said[name]) if isinstance(said[name], float) else said[name])
        for group, other in zip(found["groups"], said["groups"], strict=True):
            assert group["verdict"] == other["verdict"]
            assert group["p_adjusted"] == pytest.approx(other["p_adjusted"])


def test_a_finished_study_is_published_with_its_answers_cost_and_figures(script, tmp_path, monkeypatch):
    made, out = make_study(tmp_path / "my-study"), tmp_path / "evidence"
    monkeypatch.setattr(sys, "argv", ["publish_evidence.py", str(made), "--out", str(out), "--title", "What was found"])
    script.main()
    page = (out / "README.md").read_text()
    assert page.startswith("# What was found\n\n1 study, ")
    answers = json.loads((made / "answers.json").read_text())
    assert all(answer["sentence"] in page for answer in answers)
    there = {path.name for path in (out / "my-study").iterdir()}
    assert there >= {"study.yaml", "answers.json", "results.parquet", "cost.json", "main.md", "answer-1.svg"}
    with (out / "my-study" / "facts.csv").open(newline="") as file:
        facts = list(csv.DictReader(file))
    points = answers[2]["groups"][0]["points"]
    assert [float(row["value"]) for row in facts] == [point["fact"] for point in points]
    assert f"secateur study {out / 'my-study' / 'study.yaml'}" in page
    monkeypatch.setattr(sys, "argv", ["publish_evidence.py", str(made), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="would take the place of the study's own folder"):
        script.main()
    assert (made / "manifest.json").exists()
    monkeypatch.setattr(sys, "argv", ["publish_evidence.py", str(made), "--out", str(out)])
    (made / "manifest.json").unlink()
    with pytest.raises(SystemExit, match="is not finished"):
        script.main()


def test_a_published_figure_gives_its_facts_back(monkeypatch, tmp_path):
    """As evidence published before decision 0011 got its own back: here of a study whose facts were kept, so both are known."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import facts_of_figure

    part = tmp_path / "writers"
    shutil.copytree(ROOT / "docs" / "results" / "evidence" / "reference" / "writers", part)
    known = list(csv.reader((part / "facts.csv").read_text().splitlines()))
    (part / "facts.csv").unlink()
    figure = part / "facts-2.svg"
    monkeypatch.setattr(sys, "argv", ["facts_of_figure.py", str(figure), str(part), "--comparison", "2"])
    facts_of_figure.main()
    found = list(csv.reader((part / "facts.csv").read_text().splitlines()))
    assert [row[:-1] for row in found] == [row[:-1] for row in known]
    assert [float(row[-1]) for row in found[1:]] == pytest.approx([float(row[-1]) for row in known[1:]], rel=1e-7)
    drawn = figure.read_text()
    dot = re.search(r'<use [^>]*y="([\d.]+)" style="fill: #0072b2"', drawn)
    assert dot
    figure.write_text(drawn.replace(f'y="{dot[1]}"', f'y="{float(dot[1]) + 0.001}"', 1))
    with pytest.raises(SystemExit, match=r"a dot is .* from its cell's"):
        facts_of_figure.main()
