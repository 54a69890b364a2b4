"""Which type a model computes in: as it is stored where the processor multiplies such numbers, else float32."""

from __future__ import annotations

import pytest
import torch

from conftest import CONFIGS, save_model
from secateur import api
from secateur.models import loading
from secateur.models.checkpoint import Checkpoint
from secateur.models.loading import pick_dtype, settled_dtype
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import resolve_model
from secateur.pipeline.evaluate import plan_evaluation
from secateur.pipeline.prune import plan_prune
from secateur.pipeline.recipe_file import load_recipe
from secateur.studies.cells import expand
from secateur.studies.study_file import load_study


@pytest.fixture
def processor(monkeypatch):
    """Makes this processor one with or without bf16 arithmetic."""
    return lambda has: monkeypatch.setattr(loading, "_multiplies_bf16", lambda: has)


@pytest.mark.parametrize(
    ("name", "device", "has", "settled"),
    [
        ("auto", "cpu", True, "stored"),
        ("auto", "cpu", False, "float32"),
        ("auto", "cuda", False, "stored"),
        ("auto", "cuda:1", False, "stored"),
        ("stored", "cpu", False, "stored"),
        ("bfloat16", "cpu", False, "bfloat16"),
        ("float16", "cpu", True, "float16"),
    ],
)
def test_auto_is_as_stored_unless_the_processor_lacks_bf16(processor, name, device, has, settled):
    processor(has)
    assert settled_dtype(name, device) == settled
    assert pick_dtype(name, device) == (None if settled == "stored" else getattr(torch, settled))


def test_pytorch_can_be_asked_what_this_processor_has():
    assert settled_dtype("auto", "cpu") in {"stored", "float32"}


@pytest.fixture
def half(tmp_path):
    """A model stored in bf16."""
    return save_model(CONFIGS["llama"](), tmp_path / "half", torch.bfloat16)


def _recipe(model, text_file, **given):
    return load_recipe(
        None,
        ["calibration.samples=4", "calibration.length=16", "pruning.method=wanda", "evaluation.enabled=false"],
        {"model": str(model), "calibration.source": str(text_file), **given},
    )


def test_the_digests_say_which_type_it_was(processor, half, text_file):
    def specs():
        recipe, model = _recipe(half, text_file, **{"evaluation.dtype": "auto"}), resolve_model(str(half))
        writing = load_recipe(None, ["calibration.source=self"], {"model": str(half)})
        found = plan_calibration(writing, model).spec, plan_prune(recipe, model).spec(None)
        return [spec["dtype"] for spec in (*found, plan_evaluation(recipe, model).spec)]

    processor(True)
    assert specs() == ["stored"] * 3
    processor(False)
    assert specs() == ["float32"] * 3


def test_without_bf16_a_model_is_pruned_as_with_float32_and_saved_as_it_was_stored(
    processor, half, text_file, tmp_path
):
    processor(False)
    auto = api.prune(_recipe(half, text_file), out=tmp_path / "auto", store=tmp_path / "store").folder
    named = api.prune(_recipe(half, text_file, dtype="float32"), out=tmp_path / "named", store=tmp_path / "s").folder
    stored = api.prune(_recipe(half, text_file, dtype="stored"), out=tmp_path / "stored", store=tmp_path / "t").folder
    weights = [(folder / "model.safetensors").read_bytes() for folder in (auto, named, stored)]
    assert weights[0] == weights[1]
    assert Checkpoint(auto).dtype() == Checkpoint(stored).dtype() == torch.bfloat16


def test_a_study_settles_the_types_before_its_cells_are_handed_out(processor):
    """So that workers on unlike machines of a cluster compute in the same type."""
    for has, settled in ((True, "stored"), (False, "float32")):
        processor(has)
        cell = next(iter(expand(load_study("writers"))))
        assert (cell.recipe.dtype, cell.recipe.evaluation.dtype) == (settled, settled)
