"""secateur ls"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from secateur.cli.common import Common


def ls(
    what: Annotated[
        Literal["methods", "sources", "filters", "allocations", "recipes", "runs"], Parameter(help="What to list.")
    ],
    *,
    common: Common = Common(),  # noqa: B008 - cyclopts fills it
) -> int:
    """List methods, sources, filters, allocations, recipes, or runs."""
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
        from secateur.pipeline.recipe_file import recipe_names

        return [{"name": name, "what": summary} for name, summary in recipe_names().items()]
    from secateur.allocation import ALLOCATIONS
    from secateur.calibration.filters import FILTERS
    from secateur.calibration.sources import SOURCES
    from secateur.methods import METHODS

    registry = {"methods": METHODS, "sources": SOURCES, "filters": FILTERS, "allocations": ALLOCATIONS}[what]
    return [{"name": entry.name, "what": entry.summary} for entry in registry.entries().values()]


def _runs(common: Common) -> list[dict[str, Any]]:
    import json

    found = []
    for path in sorted(common.store.glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            {"kind": manifest.get("kind", "?"), "finished": manifest.get("finished", "?"), "folder": str(path.parent)}
        )
    found += [
        {"kind": "unfinished", "finished": "-", "folder": str(path)}
        for path in sorted(common.store.glob("*/.*.partial"))
    ]
    return found
