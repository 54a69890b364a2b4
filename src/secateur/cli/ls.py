"""secateur ls"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from secateur.cli.common import Output


def ls(
    what: Annotated[
        Literal[
            "methods",
            "sources",
            "filters",
            "selections",
            "styles",
            "engines",
            "allocations",
            "recipes",
            "studies",
            "runs",
        ],
        Parameter(help="What to list."),
    ],
    *,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """List methods, sources, filters, selections, styles, engines, allocations, recipes, studies, or runs."""
    from secateur.cli.console import print_json, print_line, print_table

    rows = _runs(common) if what == "runs" else _names(what)
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


def _runs(common: Output) -> list[dict[str, Any]]:
    from secateur.pipeline.store import read_manifest

    found = []
    for folder in sorted(path for path in common.store.glob("*/*") if path.is_dir()):
        manifest = None if folder.name.startswith(".") else read_manifest(folder)
        kind, finished = (manifest["kind"], manifest["finished"]) if manifest else ("unfinished", "-")
        found.append({"kind": kind, "finished": finished, "folder": str(folder)})
    return found
