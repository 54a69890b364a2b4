"""What docs/studies.md shows runs, and the studies that come with the package can be planned."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from secateur.cli.main import app, main
from secateur.studies.comparisons import COMPARISONS
from secateur.studies.files import study_names
from secateur.studies.plan import plan_study
from secateur.studies.study_file import load_study
from test_studies import SMALL, STUDY

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "studies.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.mark.parametrize("command", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands_in_the_guide_parse(command):
    words = shlex.split(command, comments=True)[1:]
    function, bound, *_ = app.parse_args(words, print_error=False, exit_on_error=False)
    assert function.__name__ == words[0]
    name = bound.arguments.get("target", "")
    assert words[0] != "study" or name.endswith(".yaml") or name in study_names()


@pytest.mark.parametrize("text", blocks("yaml"))
def test_studies_in_the_guide_are_valid(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    study = load_study(str(tmp_path / "s.yaml"))
    assert len(study.comparisons) == 2
    assert study.spec.exclude == [{"method": "sparsegpt", "sparsity": "0.5"}]


def test_every_comparison_is_in_the_guide():
    assert all(f"| `{name}` |" in GUIDE for name in COMPARISONS.entries())


@pytest.mark.parametrize("name", list(study_names()))
def test_bundled_studies_load(name):
    study = load_study(name)
    assert study.spec.question.endswith("?")
    assert len(study_names()[name]) > 20


def test_the_quick_study_can_be_planned():
    plan = plan_study(load_study("quick"))
    assert len(plan.works) == 2 * 2 * 3 + 2
    assert len(plan.sets) == 6


def test_studies_are_listed(capsys):
    assert main(["ls", "studies"]) == 0
    assert "quick" in capsys.readouterr().out


def test_the_python_example_runs(llama, text_file, tmp_path, monkeypatch, capsys):
    text = STUDY.format(model=llama, text=text_file)
    for old, new in (SMALL | {"repeats: 3": "repeats: 1"}).items():
        text = text.replace(old, new)
    (tmp_path / "study.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[0], {})
    assert "no interval: fewer than 2 repeats" in capsys.readouterr().out
    assert (tmp_path / "my-study" / "results.csv").is_file()
