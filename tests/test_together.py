"""Several prunings from one pass over the calibration data: each as if it were alone, the statistics taken once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import Killed, Watched, open_job, planned, prune_folder, same_weights, sequences
from secateur import Recipe
from secateur.allocation.owl import OWL
from secateur.api import prune_together
from secateur.errors import RecipeError, UsageError
from secateur.journal import Journal
from secateur.methods import METHODS
from secateur.models.batches import make_batches
from secateur.models.hidden import PREFIX, HiddenStates
from secateur.models.skeleton import Skeleton
from secateur.pipeline import store as store_module
from secateur.pipeline.store import read_manifest
from secateur.pruning.loop import Job, Setting, prune_blocks
from secateur.pruning.survey import survey
from secateur.pruning.workers import Workers
from secateur.statistics import ColumnNorms, Gram

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda", "pattern": "unstructured", "sparsity": 0.5},
    "sparsegpt": {"method": "sparsegpt", "pattern": "2:4"},
    "owl": {"method": "wanda", "pattern": "unstructured", "sparsity": 0.6, "allocation": OWL(), "head": True},
}


def together(model: Path, place: Path, propagation: str = "dense", lives: int = 10**9) -> None:
    """All configurations at once, without the pipeline; the second dies after ``lives`` linears."""
    skeleton, batches = Skeleton(model), make_batches(sequences(), 4)
    jobs = []
    for name, options in CONFIGURATIONS.items():
        plan = planned(skeleton, **{"sparsity": 0.5, **options})
        if name == "sparsegpt":
            plan = planned(skeleton, Watched(METHODS.load("sparsegpt")(), lives), "2:4")
        if plan.allocation.measures:
            plan = plan.allocated(survey(skeleton, plan, batches, Journal(None), HiddenStates(), Workers()))
        job = open_job(skeleton, plan, place / name)
        jobs.append(Job(plan, job.output, job.journal))
    prune_blocks(skeleton, jobs, batches, Setting(propagation))


@pytest.fixture
def alone(llama, tmp_path) -> dict[str, Path]:
    folders = {}
    for name, options in CONFIGURATIONS.items():
        folders[name] = tmp_path / "alone" / name
        prune_folder(llama, folders[name], propagation="dense", **options)
    return folders


def test_each_of_several_prunings_is_what_it_is_alone(any_model, tmp_path, monkeypatch):
    if (
        "gpt_neox" in str(any_model)
        or "gemma3" in str(any_model)
        or "gpt2" in str(any_model)
        or "opt" in str(any_model)
    ):
        monkeypatch.setitem(CONFIGURATIONS, "owl", {k: v for k, v in CONFIGURATIONS["owl"].items() if k != "head"})
    together(any_model, tmp_path / "together")
    for name, options in CONFIGURATIONS.items():
        prune_folder(any_model, tmp_path / "alone" / name, propagation="dense", **options)
        assert same_weights(tmp_path / "alone" / name, tmp_path / "together" / name), name


@pytest.mark.parametrize("lives", [3, 9])
def test_a_killed_run_of_several_goes_on_to_the_same_bits(llama, alone, tmp_path, lives):
    place = tmp_path / "together"
    with pytest.raises(Killed):
        together(llama, place, lives=lives)
    assert not same_weights(alone["sparsegpt"], place / "sparsegpt")
    together(llama, place)
    assert all(same_weights(folder, place / name) for name, folder in alone.items())


@pytest.mark.parametrize("propagation", ["block", "linear"])
def test_several_prunings_share_only_the_dense_model(llama, tmp_path, propagation):
    with pytest.raises(UsageError, match=r"only with pruning\.propagation=dense"):
        together(llama, tmp_path, propagation)


# The same through the front door.


def recipes(model: Path, text: Path, **changes: Any) -> list[Recipe]:
    prunings = [
        {"method": "wanda", "sparsity": 0.5},
        {"method": "sparsegpt", "pattern": "2:4"},
        {"method": "wanda", "sparsity": 0.6, "allocation": "owl"},
    ]
    common = {
        "model": str(model),
        "device": "cpu",
        "calibration": {"source": str(text), "samples": 10, "length": 24},
        "evaluation": {"enabled": False},
    }
    return [
        Recipe.model_validate(common | {"pruning": pruning | {"propagation": "dense", "batch_size": 2} | changes})
        for pruning in prunings
    ]


def changed(recipe: Recipe, **update: Any) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | update)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def fed(monkeypatch) -> dict[type, int]:
    """How often each statistic was handed rows."""
    counts = {Gram: 0, ColumnNorms: 0}
    for kind in counts:

        def counting(self, rows, weight=1, *, kind=kind, add=kind.add):
            counts[kind] += 1
            add(self, rows, weight)

        monkeypatch.setattr(kind, "add", counting)
    return counts


def singly(asked: Sequence[Recipe], place: Path) -> list[Path]:
    return [prune_together([r], [place / str(n)], place / "store")[0].folder for n, r in enumerate(asked)]


def test_recipes_together_give_what_each_gives_alone(llama, text_file, tmp_path, fed):
    asked = recipes(llama, text_file)
    alone = singly(asked, tmp_path / "alone")
    for kind in fed:
        fed[kind] = 0
    outs = [tmp_path / name for name in "abc"]
    found = prune_together(asked, outs, tmp_path / "store")
    assert [result.folder for result in found] == outs
    assert all(weights(one) == weights(other) for one, other in zip(alone, outs, strict=True))
    assert [result.manifest["shared_pass"] for result in found] == [3, 3, 3]
    inputs = 2 * 4 * 5  # blocks x distinct inputs x batches
    assert fed[Gram] == inputs
    assert fed[ColumnNorms] == 2 * inputs  # and once for OWL, on the dense model beforehand
    for result in found:
        read = read_manifest(result.folder)
        assert read is not None
        assert read["files"].keys() == {path.name for path in result.folder.iterdir()} - {"manifest.json", "README.md"}


def test_what_is_finished_already_is_not_made_again(llama, text_file, tmp_path, fed):
    asked, store = recipes(llama, text_file), tmp_path / "store"
    outs = [tmp_path / name for name in "abc"]
    prune_together([asked[1]], [outs[1]], store)
    before = (outs[1] / "manifest.json").read_bytes()
    fed[Gram] = 0
    found = prune_together(asked, outs, store)
    assert fed[Gram] == 0  # only SparseGPT needs it
    assert (outs[1] / "manifest.json").read_bytes() == before
    assert [result.manifest["shared_pass"] for result in found] == [2, 1, 2]
    alone = singly(asked, tmp_path / "alone")
    assert all(weights(one) == weights(other) for one, other in zip(alone, outs, strict=True))


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_between_the_manifest_and_the_name_the_others_are_still_made(
    llama, text_file, tmp_path, monkeypatch, victim
):
    asked, store = recipes(llama, text_file), tmp_path / "store"
    outs = [tmp_path / name for name in "abc"]
    complete = store_module.complete

    def die(*arguments):
        complete(*arguments)
        raise Killed

    monkeypatch.setattr(store_module, "complete", die)
    with pytest.raises(Killed):
        prune_together([asked[victim]], [outs[victim]], store)
    monkeypatch.setattr(store_module, "complete", complete)
    prune_together(asked, outs, store)
    alone = singly(asked, tmp_path / "alone")
    assert all(weights(one) == weights(other) for one, other in zip(alone, outs, strict=True))


def test_states_on_disk_leave_nothing_in_the_folder_even_of_a_killed_run(llama, text_file, tmp_path, monkeypatch):
    plain = prune_together(recipes(llama, text_file)[:1], [tmp_path / "plain"], tmp_path / "store")[0]
    asked = recipes(llama, text_file, activation_gib=1e-6)[:1]
    directories: list[Path] = []
    make_file = HiddenStates._file

    def dying(self, index):
        path = make_file(self, index)
        directories.append(path.parent)
        if len(directories) == 4:
            shutil.copytree(path.parent, path.parent.with_name(f"{PREFIX}left"))  # what kill -9 leaves
            raise Killed
        return path

    monkeypatch.setattr(HiddenStates, "_file", dying)
    with pytest.raises(Killed):
        prune_together(asked, [tmp_path / "out"], tmp_path / "store")
    left = list(tmp_path.glob(f".*.partial/{PREFIX}*"))
    assert [path.name for path in left] == [f"{PREFIX}left"]
    found = prune_together(asked, [tmp_path / "out"], tmp_path / "store")[0]
    assert len(directories) > 8
    assert not list(found.folder.rglob(".*"))
    assert not any(name.startswith(PREFIX) for name in found.manifest["files"])
    assert weights(found.folder) == weights(plain.folder)


def test_recipes_that_cannot_share_are_refused_before_anything_is_made(llama, text_file, tmp_path):
    first, second, third = recipes(llama, text_file)
    other = changed(second, seed=1)
    block = changed(second, pruning=second.pruning.model_dump() | {"propagation": "block"})
    wider = changed(second, pruning=second.pruning.model_dump() | {"batch_size": 3})
    for asked, match in (
        ([first, other], "Recipe 2 differs from the first in seed"),
        ([first, third, changed(third, dtype="bfloat16")], "Recipe 3 differs from the first in dtype"),
        ([first, block], r"must have pruning\.propagation dense, found dense, block"),
        ([block, block], r"must have pruning\.propagation dense"),
        ([first, wider], "batch_size"),
    ):
        with pytest.raises(RecipeError, match=match):
            prune_together(asked, None, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_recipes_that_would_make_the_same_folder_are_refused_before_anything_is_made(llama, text_file, tmp_path):
    first, second, _ = recipes(llama, text_file)
    with pytest.raises(RecipeError, match="Recipes 1 and 3 would make the same pruned model"):
        prune_together([first, second, first], None, tmp_path / "store")
    with pytest.raises(RecipeError, match=r"Recipes 1 and 2 would both be written to .*out"):
        prune_together([first, second], [tmp_path / "out", tmp_path / "store" / ".." / "out"], tmp_path / "store")
    assert not any(tmp_path.glob("*store*"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_method_without_data_may_join_whatever_its_propagation(llama, text_file, tmp_path, order):
    wanda = recipes(llama, text_file)[0]
    magnitude = changed(wanda, pruning={"method": "magnitude", "sparsity": 0.5, "batch_size": 2})
    asked = [(wanda, magnitude)[number] for number in order]
    found = prune_together(asked, None, tmp_path / "store")
    alone = singly(asked, tmp_path / "alone")
    assert all(weights(result.folder) == weights(folder) for result, folder in zip(found, alone, strict=True))
    assert found[order.index(1)].calibration is None
