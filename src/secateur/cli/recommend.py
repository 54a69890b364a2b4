"""secateur recommend"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secateur.cli.common import Common

if TYPE_CHECKING:
    from secateur.pipeline.recommend import Recommendation, RecommendPlan


def recommend(
    model: Annotated[str | None, Parameter(help="A Hub id, a local folder, 'reference', or a recipe file.")] = None,
    *,
    source: Annotated[
        list[str] | None,
        Parameter(help="A candidate: a source, self, self:STYLE, or a finished set; repeat it.", negative=()),
    ] = None,
    reference: Annotated[
        str | None, Parameter(help="Text like what the model must stay good at: a source, a file, or a set.")
    ] = None,
    draws: Annotated[int, Parameter(help="Sets of each candidate, by successive seeds.")] = 2,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Rank sources of calibration data for a model, by what proved predictive of the pruned model's quality, before
    anything is pruned: how sure that is, and why."""
    recipe = common.load(model, {}, "recommend")
    from secateur.cli.console import print_json
    from secateur.pipeline.recommend import plan_recommendation

    with common.reporter() as reporter:
        if common.dry_run:
            plan = plan_recommendation(recipe, source or (), reference, draws)
            if common.json:
                print_json({"spec": plan.spec})
            else:
                _describe(plan, draws)
            return 0
        from secateur import api

        found = api.recommend(recipe, source or (), reference, draws, common.store, reporter)
    if common.json:
        print_json(asdict(found))
    else:
        _show(found)
    return 0


def _describe(plan: RecommendPlan, draws: int) -> None:
    from secateur.cli.check import NOTHING_RUN
    from secateur.cli.console import print_line

    size = f"{plan.samples} samples of {plan.length} tokens"
    print_line(f"model        {plan.model.name}")
    print_line(f"candidates   {', '.join(dict.fromkeys(draw.source for draw in plan.draws))}")
    print_line(f"sets         {draws} of each source, of {size}; finished sets as they are")
    print_line(f"reference    {plan.text.name if plan.text else 'none'}")
    print_line(NOTHING_RUN)


def _show(found: Recommendation) -> None:
    from secateur.cli.console import print_line, print_table
    from secateur.diagnosis import families

    labels = {name: one.label for family in families().values() for name, one in family.quantities.items()}
    terms = [term["name"] for term in found.predictor["terms"]]
    rows = []
    for place, one in enumerate(found.candidates, 1):
        why = [f"{one.diagnosis[name]:.4g} ({one.why[name]:+.2f})" for name in terms]
        beaten = "" if place == 1 else f"{one.beaten_by_first:.0%}"
        rows.append([str(place), one.source, f"{one.best:.0%}", beaten, *why])
    print_table(["", "source", "is the best", "first is better", *(labels[name] for name in terms)], rows, left=2)
    print_line()
    first = found.candidates[0].source
    if found.tied:
        print_line(f"Take {first}; {', '.join(found.tied)} cannot be told from it.")
    else:
        print_line(f"Take {first}: it is told from all others.")
    known, predictor = found.evidence, found.predictor
    print_line(
        f"In brackets: what a diagnosis adds to the log-odds, against the mean of all. Of sets on {known['model']} "
        f"({known['sets']} kinds, {known['seeds']} seeds, {' and '.join(known['methods'])} at "
        f"{' and '.join(known['targets'])}) this ordered {predictor['right']:.0%} of pairs rightly that had no part in it."
    )
    if not found.model.startswith(known["model"]):
        print_line(f"That is one small model: whether it holds for {found.model} was not tried. A study decides it.")
    if found.reference is None:
        print_line("With --reference, a text like what the model must stay good at, likeness to it counts too.")
    print_line(f"sets: {found.samples} samples of {found.length} tokens each, in {found.folder}")
