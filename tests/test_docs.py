"""What the documents show runs: commands parse, recipes are valid, the example method works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from secateur.cli.main import app
from secateur.masks import parse_pattern
from secateur.methods import METHODS
from secateur.pipeline.components import make_engine, make_filters, make_selection, make_style
from secateur.pipeline.recipe_file import load_recipe
from secateur.registry import Entry
from secateur.statistics import ColumnNorms, InputStatistics

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "calibration-data.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    joined = "\n".join(blocks("sh") + blocks("sh", GUIDE)).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith("secateur ")]


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_readme_parse(command):
    words = shlex.split(command, comments=True)[1:]
    function, bound, *_ = app.parse_args(words, print_error=False, exit_on_error=False)
    assert function.__name__.rstrip("_") == words[0]
    common = bound.arguments.get("common")
    sets = [entry for entry in (common.set_ if common else []) if "power" not in entry]
    load_recipe(common.recipe if common else None, sets)


def test_there_are_commands_to_check():
    assert len(commands()) >= 4
    assert "make demo" in "\n".join(README.splitlines()[:30])
    assert "make test" in "\n".join(README.splitlines()[:30])


@pytest.mark.parametrize("setting", re.findall(r"--set ((?:[^'\s`]|'[^']*')+)", README + GUIDE))
def test_settings_in_the_documents_are_known(setting):
    if "power" not in setting:
        load_recipe(None, [setting.replace("'", "")])


def test_the_python_example_runs(llama, text_file, tmp_path, monkeypatch):
    example = next(block for block in blocks("python") if "load_recipe(" in block)
    small = {
        "model": str(llama),
        "calibration": {"samples": 3, "length": 24, "generation": {"prefixes": str(text_file)}},
        "evaluation": {"text": str(text_file), "limit": 2},
    }
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(example.replace('{"model": "reference"}', repr(small)), found)
    assert found["result"].manifest["sparsity"] == pytest.approx(0.5)
    assert str(llama) in found["result"].manifest["model"]["folder"]


@pytest.mark.parametrize("text", blocks("yaml", GUIDE))
def test_recipes_in_the_guide_are_valid(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert [*make_filters(recipe), make_selection(recipe), make_style(recipe), make_engine(recipe)]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_in_the_readme_are_valid(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "r.yaml")).pruning.pattern == "2:4"


def test_the_example_method_works(monkeypatch, tmp_path):
    example = next(block for block in blocks("python") if "PowerWanda" in block)
    (tmp_path / "power_wanda.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    entries = METHODS.entries() | {"power-wanda": Entry("power-wanda", "power_wanda:PowerWanda", "")}
    monkeypatch.setattr(METHODS, "entries", lambda: entries)
    method = METHODS.load("power-wanda")(power=1.0)
    stats = InputStatistics([ColumnNorms(16)])
    stats.update(torch.randn(40, 16))
    weight = torch.randn(4, 16)
    pruned = method.prune(weight, stats, parse_pattern("2:4"), 0.5)
    assert torch.equal(pruned.mask, METHODS.load("wanda")().prune(weight, stats, parse_pattern("2:4"), 0.5).mask)


def test_methods_of_other_packages_are_found_by_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    from secateur import registry

    points = [
        EntryPoint("mine", "package.module:Mine", "secateur.methods"),
        EntryPoint("wanda", "evil:Wanda", "secateur.methods"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "secateur.methods" else [])
    assert METHODS.entries()["mine"].target == "package.module:Mine"
    assert METHODS.entries()["wanda"].target.startswith("secateur.")
    with pytest.raises(Exception, match="cannot be imported"):
        METHODS.load("mine")


def test_the_source_tree_in_the_readme_is_the_real_one():
    tree = README[README.index("src/secateur/\n") : README.index("scripts/          train_reference.py")]
    for folder in (
        path for path in (ROOT / "src" / "secateur").iterdir() if path.is_dir() and path.name != "__pycache__"
    ):
        assert f"{folder.name}/" in tree
