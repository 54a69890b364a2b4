"""The page of a profile: one HTML file that needs no network, from what profile.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAGE = "profile.html"


def profile_page(found: Mapping[str, Any]) -> str:
    """The page as text. Everything that comes from a set is escaped; figures are inline SVG."""
    from markupsafe import Markup

    from secateur.reports.page import render
    from secateur.reports.profile_figures import figures

    return render(
        "profile.html.jinja",
        found=found,
        tables=_tables(found),
        made=[_made(one) for one in found["sets"]],
        figures=[{**figure, "svg": Markup(figure["svg"])} for figure in figures(found)],
        pairs=_pairs(found),
    )


def _tables(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers by family: a row a quantity, a column a set; families nobody measured are left out."""
    tables = []
    for family, facts in found["families"].items():
        values = [one["families"][family]["values"] for one in found["sets"]]
        rows = [
            {
                "label": quantity["label"],
                "meaning": quantity["meaning"],
                "cells": [shown(row.get(name), quantity["shown"]) for row in values],
            }
            for name, quantity in facts["quantities"].items()
            if any(name in row for row in values)
        ]
        if rows:
            tables.append({"title": facts["title"], "rows": rows})
    return tables


def shown(value: float | None, how: str) -> str:
    """A number in its quantity's format; large ones without decimals, missing ones as a dash."""
    if value is None:
        return "-"
    return format(value, ",.0f" if how.endswith("f") and abs(value) >= 1000 else how)


def _made(one: Mapping[str, Any]) -> dict[str, str]:
    """What a set was made from and how, as rows of text."""
    made = one["made"]
    spec = made.get("spec", {})
    rows = {
        "source": made.get("source"),
        "model": made.get("model", {}).get("name"),
        "samples": f"{made['samples']:,}, {made['tokens']:,} tokens" if "samples" in made else None,
        "packing": spec.get("packing"),
        "filters": _filters(spec.get("filters")),
        "selection": (spec.get("selection") or {}).get("name"),
        "seed": made.get("seed"),
        **_flat(made.get("account", {})),
        **{f"dropped, {reason or 'no reason given'}": count for reason, count in made.get("dropped", {}).items()},
        "SHA-256 of the ids": str(made.get("set_digest", ""))[:16],
    }
    return {
        name: f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)
        for name, value in rows.items()
        if value not in (None, "")
    }


def _filters(filters: list[dict[str, Any]] | None) -> str:
    described = [
        one["name"] + "".join(f", {key} {value}" for key, value in one.items() if key != "name")
        for one in filters or []
    ]
    return "; ".join(described) or "none"


def _flat(account: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The account's counts; of a mixture, each source's own."""
    found = {}
    for name, value in account.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}: ")
        else:
            found[prefix + name.replace("_", " ")] = value
    return found


def _pairs(found: Mapping[str, Any]) -> str:
    """How the mask overlaps between sets compare with those within them, in a sentence; empty when there is no telling."""
    masks = found["between"]["masks"]
    if not masks or len(found["sets"]) < 2:
        return ""
    rows = masks["halves"]
    within = [rows[index][index] for index in range(len(rows)) if rows[index][index] is not None]
    between = [
        value for one, row in enumerate(rows) for other, value in enumerate(row) if other < one and value is not None
    ]
    if not within or not between:
        return ""
    return (
        f"Halves of one set overlap by {min(within):.3f} to {max(within):.3f}, halves of different sets by "
        f"{min(between):.3f} to {max(between):.3f}; independent masks would by {masks['chance']:.3f}. The first is what the "
        "draw alone does: only what lies below it is a difference between sets."
    )
