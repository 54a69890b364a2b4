"""secateur profile"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Common

WIDEST_NAME = 24


def profile(
    sets: Annotated[list[str], Parameter(help="Folders of calibration sets, of one tokenizer.", negative=())],
    *,
    reference: Annotated[
        str | None, Parameter(help="Text to compare with: a source by name, a file, a Hub data set, or a set.")
    ] = None,
    model: Annotated[str | None, Parameter(help="The model that measures; the one the sets were made for.")] = None,
    permutations: Annotated[int | None, Parameter(help="Of MinHash; 256.")] = None,
    min_k: Annotated[float | None, Parameter(help="The share of tokens that Min-K % looks at; 0.5.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for profile.json and a page that shows it.")] = None,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Say what calibration sets are like, before anything is pruned: likelihood, variety, likeness to a reference text,
    directions filled inside the model, and how much their masks have in common."""
    recipe = common.load(model, {})
    from secateur.cli.check import NOTHING_RUN
    from secateur.cli.console import print_json, print_line

    if common.dry_run:
        from secateur.pipeline.profile import plan_profile

        plan = plan_profile(recipe, sets, reference, permutations, min_k)
        if common.json:
            print_json({"spec": plan.spec})
            return 0
        text = plan.bench.text
        print_line(f"model        {plan.bench.model.name}")
        print_line(f"sets         {', '.join(one.name for one in plan.sets)}")
        print_line(f"reference    {text.name if text else 'none'}")
        print_line(NOTHING_RUN)
        return 0

    from secateur import api

    with common.reporter() as reporter:
        found = api.profile(recipe, sets, reference, out, reporter, permutations, min_k)
    if common.json:
        print_json(found)
        return 0
    _print(found)
    if out is not None:
        print_line()
        print_line(f"profile: {out / 'profile.json'}, page: {out / 'profile.html'}")
    return 0


def _print(found: dict[str, Any]) -> None:
    from secateur.cli.console import print_line, print_table
    from secateur.reports.profile_page import shown

    names = [_short(one["name"]) for one in found["sets"]]
    print_line(f"model      {found['model']['name']}")
    if found["reference"]:
        text = found["reference"]
        print_line(f"reference  {text['name']}: {text['texts']:,} texts, {text['tokens']:,} tokens")
    print_line()
    rows = []
    for family, facts in found["families"].items():
        values = [one["families"][family]["values"] for one in found["sets"]]
        known = {name: one for name, one in facts["quantities"].items() if any(name in found for found in values)}
        if known:
            rows.append([facts["title"], *[""] * len(names)])
        for name, quantity in known.items():
            cells = [shown(row.get(name), quantity["shown"]) for row in values]
            rows.append([f"  {quantity['label']}", *cells])
    print_table(["", *names], rows)
    masks = found["between"]["masks"]
    if masks and len(names) > 1:
        options = found["options"]
        print_line()
        print_line(
            f"Overlap of Wanda masks at {options['sparsity']:.0%} ({options['pattern']}) from halves of the sets, on the diagonal "
            f"of the two halves of one; by chance {masks['chance']:.3f}:"
        )
        print_line()
        cells = [["-" if value is None else f"{value:.3f}" for value in row] for row in masks["halves"]]
        print_table(["", *names], [[name, *row] for name, row in zip(names, cells, strict=True)])


def _short(name: str) -> str:
    """Printable, and short enough for a column."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= WIDEST_NAME else f"{name[: WIDEST_NAME - 9]}…{name[-8:]}"
