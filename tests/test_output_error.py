"""What pruning did to each linear's outputs, as the records have it."""

from __future__ import annotations

import json

import pytest
import torch

from secateur import api
from secateur.models.loading import load_model
from secateur.pipeline.calibrate import load_set
from secateur.pipeline.recipe_file import load_recipe


def pruned(llama, text_file, store, *settings):
    small = ["calibration.samples=4", "calibration.length=24", f"calibration.source={text_file}"]
    recipe = load_recipe(None, [*small, "evaluation.enabled=false", *settings], {"model": str(llama)})
    result = api.prune(recipe, store=store)
    records = [json.loads(line) for line in (result.folder / "pruning.jsonl").read_text().splitlines()]
    notes = {one["name"]: one["notes"] for record in records for one in record.get("linears", [record])}
    return result, {name: found["output_error"] for name, found in notes.items() if "output_error" in found}


@pytest.mark.parametrize("propagation", ["block", "linear", "dense"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_recorded_error_is_that_of_the_outputs(llama, text_file, tmp_path, method, propagation):
    settings = [f"pruning.method={method}", "pruning.output_error=true", f"pruning.propagation={propagation}"]
    result, errors = pruned(llama, text_file, tmp_path, *settings)
    name = "model.layers.0.self_attn.q_proj"  # its inputs are the same whatever is pruned
    dense, model = load_model(llama), load_model(result.folder)
    seen: list[torch.Tensor] = []
    hook = dense.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.inference_mode():
        for sample in load_set(result.calibration).samples:
            dense(torch.tensor([sample.token_ids]))
    hook.remove()
    inputs = torch.cat([one.flatten(0, 1) for one in seen]).double()
    before, after = (one.get_submodule(name).weight.detach().double() for one in (dense, model))
    expected = float((inputs @ (after - before).T).square().sum() / (inputs @ before.T).square().sum())
    assert errors[name] == pytest.approx(expected, rel=1e-3)
    assert len(errors) == 14, "seven linears in each of two blocks"
    assert all(0 < error < 1 for error in errors.values())


def test_errors_are_recorded_only_where_asked_and_where_there_is_data(llama, text_file, tmp_path):
    plain, errors = pruned(llama, text_file, tmp_path)
    assert not errors
    asked, errors = pruned(llama, text_file, tmp_path, "pruning.output_error=true")
    assert errors
    assert asked.folder != plain.folder
    same = [load_model(one.folder).state_dict() for one in (plain, asked)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    _, errors = pruned(llama, text_file, tmp_path, "pruning.output_error=true", "pruning.method=magnitude")
    assert not errors
