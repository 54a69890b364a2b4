"""secateur ls"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from secateur.cli.common import Output

What = Literal[
    "methods",
    "sources",
    "filters",
    "selections",
    "styles",
    "engines",
    "allocations",
    "recipes",
    "studies",
    "tasks",
    "runs",
]
CONTENTS = {
    "methods": "which weights go, and what becomes of the rest",
    "sources": "where calibration text comes from",
    "filters": "what stays out of a calibration set",
    "selections": "how samples are chosen from a pool",
    "styles": "what a model is given to start its own text with",
    "engines": "what lets a model write",
    "allocations": "how sparsity is spread over a model",
    "recipes": "recipes that come with the package",
    "studies": "studies that come with the package",
    "tasks": "tasks to measure a model on; others are lm-eval's",
    "runs": "what the store holds: calibration sets, pruned models, evaluations, ...",
}
"""What each list is of."""


def ls(
    what: Annotated[What | None, Parameter(help="What to list; if left out, what can be listed.")] = None,
    *,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """List methods, sources, filters, selections, styles, engines, allocations, recipes, studies, tasks, or runs."""
    from secateur.cli.console import print_json, print_line, print_table

    if what == "runs":
        from secateur.cli.runs import runs, shown

        found = runs(common.store)
        rows = found if common.json else shown(found)
    else:
        rows = _names(what) if what else [{"name": name, "what": summary} for name, summary in CONTENTS.items()]
    if common.json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows], left=len(rows[0]))
    else:
        print_line(f"No {what} in {common.store}.")
    return 0


def _names(what: str) -> list[dict[str, Any]]:
    if what == "recipes":
        from secateur.pipeline.recipes import recipe_names

        return [{"name": name, "what": summary} for name, summary in recipe_names().items()]
    if what == "studies":
        from secateur.studies.files import study_names

        return [{"name": name, "what": summary} for name, summary in study_names().items()]
    from secateur.allocation import ALLOCATIONS
    from secateur.calibration.filters import FILTERS
    from secateur.calibration.selection import SELECTIONS
    from secateur.calibration.sources import SOURCES
    from secateur.evaluation.tasks import TASKS
    from secateur.generation.engines import ENGINES
    from secateur.generation.styles import STYLES
    from secateur.methods import METHODS

    tables = {"methods": METHODS, "sources": SOURCES, "filters": FILTERS, "allocations": ALLOCATIONS}
    registry = (tables | {"selections": SELECTIONS, "styles": STYLES, "engines": ENGINES, "tasks": TASKS})[what]
    return [{"name": entry.name, "what": entry.summary} for entry in registry.entries().values()]
