"""secateur evaluate"""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Common, check_evaluation_text


def evaluate(
    model: Annotated[
        str | None, Parameter(help="A Hub id, a folder (also one that prune made), or a recipe file.")
    ] = None,
    *,
    text: Annotated[str | None, Parameter(help="A source of text by name, a file, or a Hub data set.")] = None,
    protocol: Annotated[
        str | None, Parameter(help="concat-N (such as concat-2048), document, wikitext2 or alpaca.")
    ] = None,
    task: Annotated[
        list[str] | None, Parameter(help="next-line, parses, paper, or one of lm-eval's; may be repeated.", negative=())
    ] = None,
    tasks_from: Annotated[
        str | None, Parameter(help="Folder of local files for the tasks; the Hub, if left out.")
    ] = None,
    against: Annotated[str | None, Parameter(help="The dense model; known already for what prune made.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Measure a model; a pruned one is compared with its dense model: perplexity, KL, Jensen-Shannon, top-1, tasks."""
    asked = {"evaluation.text": text, "evaluation.protocol": protocol, "evaluation.tasks": task or None}
    recipe = common.load(model, {**asked, "evaluation.tasks_from": tasks_from}, "evaluate")
    check_evaluation_text(recipe)
    from secateur.cli.console import print_json, print_line
    from secateur.cli.prune import score_lines

    if common.dry_run:
        from secateur.cli.check import describe_evaluations

        return describe_evaluations(recipe, against, common)

    from secateur import api

    with common.reporter() as reporter:
        result = api.evaluate(recipe, against, common.store, reporter)
    if common.json:
        print_json({"scores": result.scores, "dense_scores": result.dense_scores, "manifest": result.manifest})
        return 0
    print_line(f"model          {recipe.model}")
    print_line(f"text           {result.manifest['text']}")
    for line in [*score_lines(result.scores, result.dense_scores), *task_lines(result.scores, result.dense_scores)]:
        print_line(line)
    return 0


def task_lines(scores: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Tasks, what is left of each capability, and what the model writes, for people."""
    from secateur.evaluation.capabilities import accuracy_of

    lines = []
    for name, own in scores.get("tasks", {}).items():
        other, value = dense.get("tasks", {}).get(name, {}), accuracy_of(own)
        if value is None:
            lines.append(f"{name:<14} {_against(other.get('ppl'), own.get('ppl'), '.3f')}")
            continue
        parts = [_against(accuracy_of(other), value, ".1%"), f"chance {own['chance']:.1%}"]
        if "ece" in own:
            parts.append(f"calibration error {_against(other.get('ece'), own['ece'], '.3f')}")
        lines.append(f"{name:<14} {', '.join(parts)} ({own['items']:,} questions)")
    if "task_fidelity" in scores:
        near = scores["task_fidelity"]
        lines.append(
            f"on task text   KL {near['kl']:.4f}, Jensen-Shannon {near['js']:.4f} nats, same token {near['top1']:.1%}"
        )
    for kind, left in scores.get("retention", {}).get("capabilities", {}).items():
        share = "-" if left["share"] is None else f"{left['share']:.1%}"
        lines.append(f"{kind:<14} {share} of the dense model's accuracy is left")
    if "generation" in scores:
        own, other = scores["generation"], scores["generation"].get("dense") or dense.get("generation", {})
        lines.append(
            f"writing        {_against(other.get('tokens'), own['tokens'], '.0f')} tokens, repeated 4-grams "
            f"{_against(other.get('repetition'), own['repetition'], '.1%')}"
        )
    return lines


def _against(dense: float | None, value: float | None, form: str) -> str:
    shown = "-" if value is None else format(value, form)
    return shown if dense is None else f"dense {format(dense, form)}, pruned {shown}"
