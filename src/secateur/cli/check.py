"""secateur check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Output


def check(
    target: Annotated[str, Parameter(name="recipe", help="A recipe file, or the name of a bundled recipe.")],
    *,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", help="Any recipe value as key.path=value.", negative=())
    ] = None,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Check a recipe against its model and say what it would do, without doing it."""
    from secateur.pipeline.recipe_file import load_recipe

    return describe(load_recipe(target, set_ or []), common, None)


def describe(recipe: Any, common: Output, out: Path | None) -> int:
    """Resolve every stage of ``recipe`` and print what it would do; errors are raised as in a real run."""
    from secateur.api import plan_run
    from secateur.cli.console import print_json, print_line
    from secateur.models.loading import quiet_transformers
    from secateur.pipeline.store import read_manifest

    quiet_transformers()
    plan = plan_run(recipe, out)
    model, stage = plan.model, plan.pruning
    weights = sum(linear.inputs * linear.outputs for linear in _linears(stage))
    found: dict[str, Any] = {
        "model": {"name": model.name, "folder": str(model.folder), "digest": model.digest},
        "blocks": len(stage.skeleton.blocks),
        "linears": len(stage.plan.sizes),
        "prunable_weights": weights,
        "parameters": stage.skeleton.checkpoint.parameters,
        "method": recipe.pruning.method.model_dump(),
        "pattern": str(stage.pattern),
        "sparsity": stage.sparsity,
        "out": str(out) if out else None,
        "calibration": None,
        "recipe": recipe.model_dump(),
    }
    if plan.calibration:
        folder = plan.calibration.folder(common.store)
        ready = read_manifest(folder) is not None
        found["calibration"] = {"spec": plan.calibration.spec, "folder": str(folder), "ready": ready}
    elif plan.existing_set:
        manifest = read_manifest(plan.existing_set) or {}
        found["calibration"] = {"spec": manifest["spec"], "folder": str(plan.existing_set), "ready": True}
    expected = _forecast(plan, out or common.store)
    found["expected"] = {"peak_bytes": expected.peak_bytes, "seconds": expected.seconds}
    found["expected"] |= {"memory": expected.memory, "time": expected.time}
    if common.json:
        print_json(found)
        return 0
    print_line(f"model        {model.name} ({found['parameters']:,} parameters in {found['blocks']} blocks)")
    print_line(f"to prune     {found['linears']} linears, {weights:,} weights")
    print_line(f"method       {recipe.pruning.method.name}, {stage.pattern}, sparsity {stage.sparsity:g}")
    if found["calibration"]:
        spec = found["calibration"]["spec"]
        ready = "there already" if found["calibration"]["ready"] else "to be made"
        print_line(
            f"calibration  {spec['samples']} samples of {spec['length']} tokens from {spec['source']!r}, {ready}"
        )
    else:
        print_line("calibration  none needed")
    print_line(f"expected     {expected.sentence()}")
    if common.verbose:
        for name, size in expected.memory.items():
            print_line(f"  {name:24} {size / 2**20:10,.0f} MiB")
        for name, seconds in expected.time.items():
            print_line(f"  {name:24} {seconds:10,.1f} s")
    print_line("Nothing was run. Everything that can be checked beforehand is in order.")
    return 0


def _forecast(plan: Any, place: Path) -> Any:
    """What pruning will take; making calibration data, and evaluating, are not in it."""
    from secateur.pipeline.calibrate import load_set
    from secateur.pipeline.pruning_run import hidden_budget
    from secateur.pruning.forecast import forecast

    stage, lengths = plan.pruning, []
    if plan.calibration:
        lengths = [plan.calibration.spec["length"]] * plan.calibration.spec["samples"]
    elif plan.existing_set:
        lengths = [len(sample.token_ids) for sample in load_set(plan.existing_set).samples]
    spec = stage.recipe.pruning
    budget = hidden_budget(stage)
    return forecast(stage.skeleton, stage.plan, spec.propagation, lengths, spec.batch_size, budget, place)


def _linears(stage: Any) -> list[Any]:
    from secateur.pruning.plan import prunable_linears

    head = [stage.skeleton.head()] if stage.plan.head else []
    return prunable_linears(stage.skeleton, stage.recipe.pruning.skip) + head
