"""secateur evaluate"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from secateur.cli.common import Common


def evaluate(
    model: Annotated[
        str | None, Parameter(help="A Hub id, a folder (also one that prune made), or a recipe file.")
    ] = None,
    *,
    text: Annotated[str | None, Parameter(help="A source of text by name, a file, or a Hub data set.")] = None,
    protocol: Annotated[str | None, Parameter(help="concat-N (such as concat-2048), or document.")] = None,
    against: Annotated[str | None, Parameter(help="The dense model; known already for what prune made.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Measure a model; a pruned one is compared with its dense model: perplexity, KL, Jensen-Shannon, top-1."""
    recipe = common.load(model, {"evaluation.text": text, "evaluation.protocol": protocol})
    from secateur.cli.console import print_json, print_line
    from secateur.cli.prune import score_lines

    if common.dry_run:
        from secateur.api import plan_evaluations

        stages = plan_evaluations(recipe, against)
        print_json([{"spec": stage.spec, "folder": str(stage.folder(common.store))} for stage in stages])
        return 0

    from secateur import api

    with common.reporter() as reporter:
        result = api.evaluate(recipe, against, common.store, reporter)
    if common.json:
        print_json({"scores": result.scores, "dense_scores": result.dense_scores, "manifest": result.manifest})
        return 0
    print_line(f"model          {recipe.model}")
    print_line(f"text           {result.manifest['text']}")
    for line in score_lines(result.scores, result.dense_scores):
        print_line(line)
    return 0
