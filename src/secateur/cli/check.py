"""secateur check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Output, check_evaluation_text

NOTHING_RUN = "Nothing was run. Everything that can be checked beforehand is in order."


def check(
    target: Annotated[
        str, Parameter(name="recipe", help="A recipe or study file, or the name of one that comes with the package.")
    ],
    *,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", help="Any recipe value as key.path=value.", negative=())
    ] = None,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Check a recipe against its model and say what it would do, without doing it."""
    from secateur.pipeline.recipe_file import load_recipe
    from secateur.studies.study_file import load_study, looks_like_study

    if looks_like_study(target):
        from secateur.studies.plan import plan_study

        return describe_study(plan_study(load_study(target, set_ or [])), common, None)
    return describe(load_recipe(target, set_ or []), common, None)


def describe(recipe: Any, common: Output, out: Path | None) -> int:
    """Resolve every stage of ``recipe`` and print what it would do; errors are raised as in a real run."""
    from secateur.api import plan_run
    from secateur.cli.console import print_json
    from secateur.models.loading import quiet_transformers
    from secateur.pipeline.pruning_facts import notes
    from secateur.pipeline.store import read_manifest

    quiet_transformers()
    if recipe.evaluation.enabled:
        check_evaluation_text(recipe)
    plan = plan_run(recipe, out)
    model, stage = plan.model, plan.pruning
    weights = sum(size.weights for size in stage.plan.sizes)
    found: dict[str, Any] = {
        "model": {"name": model.name, "folder": str(model.folder), "digest": model.digest},
        "blocks": len(stage.skeleton.blocks),
        "linears": len(stage.plan.sizes),
        "notes": notes(stage),
        "prunable_weights": weights,
        "parameters": stage.skeleton.checkpoint.parameters,
        "stored_as": _name(stage.skeleton.checkpoint.dtype()),
        "computed_in": _name(stage.skeleton.dtype),
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
    found["evaluation"] = {"tasks": _tasks(recipe) if recipe.evaluation.enabled else []}
    expected = _forecast(plan, out or common.store)
    found["expected"] = {"peak_bytes": expected.peak_bytes, "seconds": expected.seconds}
    found["expected"] |= {"memory": expected.memory, "time": expected.time, "left_out": _left_out(found, recipe)}
    if common.json:
        print_json(found)
        return 0
    _print_run(found, recipe, expected.sentence(), common.verbose)
    return 0


def _print_run(found: dict[str, Any], recipe: Any, sentence: str, verbose: bool) -> None:
    from secateur.cli.console import print_line

    size = f"{found['parameters']:,} parameters in {found['blocks']} blocks"
    print_line(
        f"model        {found['model']['name']} ({size}; stored in {found['stored_as']}, computed in {found['computed_in']})"
    )
    print_line(f"to prune     {found['linears']} linears, {found['prunable_weights']:,} weights")
    for note in found["notes"]:
        print_line(f"note         {note}")
    print_line(f"method       {recipe.pruning.method.name}, {found['pattern']}, sparsity {found['sparsity']:g}")
    if found["calibration"]:
        spec = found["calibration"]["spec"]
        ready = "there already" if found["calibration"]["ready"] else "to be made"
        print_line(
            f"calibration  {spec['samples']} samples of {spec['length']} tokens from {spec['source']!r}, {ready}"
        )
    else:
        print_line("calibration  none needed")
    if found["evaluation"]["tasks"]:
        print_line(f"evaluation   tasks {', '.join(found['evaluation']['tasks'])}, all there")
    print_line(f"expected     {_expected(sentence, found['expected']['left_out'])}")
    if verbose:
        for name, size in found["expected"]["memory"].items():
            print_line(f"  {name:24} {size / 2**20:10,.0f} MiB")
        for name, seconds in found["expected"]["time"].items():
            print_line(f"  {name:24} {seconds:10,.1f} s")
    print_line(NOTHING_RUN)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _left_out(found: dict[str, Any], recipe: Any) -> list[str]:
    """What a run does besides pruning, which is not forecast."""
    left = ["measuring"] if recipe.evaluation.enabled else []
    return ["making the calibration set", *left] if found["calibration"] and not found["calibration"]["ready"] else left


def _expected(sentence: str, left_out: list[str]) -> str:
    if not left_out:
        return sentence
    return f"pruning alone: {sentence}; {' and '.join(left_out)} come{'' if len(left_out) > 1 else 's'} on top"


def describe_set(recipe: Any, common: Output, out: Path | None) -> int:
    """The calibration set that ``recipe`` asks for, and whether it is there; nothing is made."""
    from secateur.cli.console import print_json, print_line
    from secateur.models.loading import quiet_transformers
    from secateur.pipeline.calibrate import plan_calibration
    from secateur.pipeline.store import finished

    quiet_transformers()
    stage = plan_calibration(recipe)
    folder = out or stage.folder(common.store)
    ready = finished(folder, stage.spec)
    if common.json:
        print_json({"spec": stage.spec, "folder": str(folder), "ready": ready})
        return 0
    spec = stage.spec
    print_line(f"model        {stage.model.name}")
    print_line(f"calibration  {spec['samples']} samples of {spec['length']} tokens from {spec['source']!r}")
    print_line(f"folder       {folder}, {'there already' if ready else 'to be made'}")
    print_line(NOTHING_RUN)
    return 0


def describe_evaluations(recipe: Any, against: str | None, common: Output) -> int:
    """What would be measured, on what, and which scores are there; nothing is measured."""
    from secateur.api import plan_evaluations
    from secateur.cli.console import print_json, print_line
    from secateur.evaluation.protocol import placed
    from secateur.models.loading import quiet_transformers
    from secateur.pipeline.store import finished

    quiet_transformers()
    stages = plan_evaluations(recipe, against)
    found = []
    for stage in stages:
        folder = stage.folder(common.store)
        place = {"folder": str(folder), "ready": finished(folder, stage.spec)}
        found.append({"model": stage.model.name, "spec": stage.spec, **place})
    if common.json:
        print_json(found)
        return 0
    first = stages[0]
    print_line(f"model        {first.model.name}")
    if len(stages) > 1:
        print_line(f"dense        {stages[1].model.name}, measured too, and compared with")
    limit = f", {first.limit} windows or documents at most" if first.limit else ""
    begin = placed(first.begin.place, first.protocol)
    print_line(f"text         {first.source.name}, {first.protocol}, {begin}{limit}")
    if tasks := _tasks(recipe):
        print_line(f"tasks        {', '.join(tasks)}")
    for one in found:
        print_line(
            f"scores       of {one['model']}: {'there already' if one['ready'] else 'to be made'}, {one['folder']}"
        )
    print_line(NOTHING_RUN)
    return 0


def _tasks(recipe: Any) -> list[str]:
    """The evaluation's tasks by name, groups taken apart; planning the run has checked that they can be had."""
    from secateur.pipeline.evaluation_tasks import task_names

    return task_names(recipe.evaluation)


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


def describe_study(plan: Any, common: Output, out: Path | None) -> int:
    """What a study is, what of it is done, to run or failed, and what that will take."""
    from secateur.cli.console import print_json, print_line
    from secateur.studies.overview import overview

    found = overview(plan, common.store, out)
    if common.json:
        print_json(found)
        return 0
    print_line(f"question     {found['question']}")
    print_line(f"model        {', '.join(found['models'])}")
    for axis, labels in found["axes"].items():
        print_line(f"axis         {axis}: {', '.join(labels)}")
    print_line(f"repeats      {len(found['repeats'])} seeds; controls {', '.join(found['controls']) or 'none'}")
    print_line(
        f"cells        {found['cells']}: {len(found['cached'])} cached, {len(found['to_run'])} to run, "
        f"{len(found['failed'])} failed before; {found['sets']} calibration sets; {found['excluded']} excluded"
    )
    for comparison in found["comparisons"]:
        print_line(f"asked        {comparison}")
    for note in found["notes"]:
        print_line(f"note         {note}")
    for name in ("cached", "to_run", "failed") if common.verbose else ("failed",):
        for cell in found[name]:
            error = f": {cell['error']}" if "error" in cell else ""
            print_line(f"  {name.replace('_', ' '):8} {cell['cell']}  {cell['said']}{error}")
    print_line(f"expected     {found['expected']['sentence']}")
    print_line(NOTHING_RUN)
    return 0
