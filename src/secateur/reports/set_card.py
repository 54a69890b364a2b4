"""The card of a calibration set, for people and for the Hub."""

from __future__ import annotations

import html
import io
import json
import statistics
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from secateur.calibration.sources.resolve import SELF
from secateur.pipeline.recipe import CalibrationSpec, Recipe
from secateur.pipeline.set_provenance import provenance_of
from secateur.pipeline.store import read_manifest

SHOWN, CHARACTERS = 3, 240


def set_card(folder: Path, data: str = "") -> str:
    """Markdown: what the set was made from, how, what was dropped and why, and how to make it again.

    ``data``: the data files beside the card, for ``datasets.load_dataset``; empty: the set itself is.
    """
    facts = provenance_of(folder)
    lines = [
        "---",
        _yaml(_front_matter(data)),
        "---",
        "",
        "# Calibration set",
        "",
        _summary(facts),
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {_cell(html.escape(name))} | {_cell(value)} |" for name, value in _rows(folder, facts).items()]
    if data:
        lines += [
            "",
            "`input_ids` are the samples; `text` shows them to people, and tokenised again it may be other ids.",
        ]
    else:
        lines += ["", "`samples.jsonl` is the set: its `token_ids` count, its `text` is for people."]
    lines += [*_dropped(facts), *_again(facts), *_licence(facts)]
    for name, title in (("kept.jsonl", "kept"), ("dropped.jsonl", "dropped")):
        if (folder / name).exists():
            lines += ["", *_judged(folder / name, title)]
    if not (folder / "kept.jsonl").exists():
        lines += ["", "## Samples", "", *_texts(_entries(folder / "samples.jsonl"))]
    return "\n".join(lines) + "\n"


def _front_matter(data: str) -> dict[str, Any]:
    """Where ``datasets`` finds the rows, and nothing that is not known."""
    files = {"config_name": "default", "data_files": [{"split": "train", "path": data}]}
    return ({"configs": [files]} if data else {}) | {"tags": ["calibration", "secateur"]}


def _summary(facts: dict[str, Any]) -> str:
    model, count, source = (
        _code(facts["model"]["name"]),
        f"{facts['samples']} samples, {facts['tokens']:,} tokens",
        _code(facts["source"]),
    )
    if facts["spec"].get("stage") == "import":
        return f"{count}, imported for {model} from {source}; nothing is known of how they were made."
    if facts["source"] == SELF:
        return f"{count} that {model} wrote itself, to calibrate its own pruning or quantisation with."
    return f"{count} from {source}, to calibrate the pruning or quantisation of {model} with."


def _rows(folder: Path, facts: dict[str, Any]) -> dict[str, str]:
    """The table: what is there of model, settings, counts and digests."""
    spec, model, imported = facts["spec"], facts["model"], (read_manifest(folder) or {}).get("imported")
    up_to = "" if spec.get("packing", "whole") != "whole" else "up to "
    rows = {
        "source": _code(facts["source"]),
        "model": _code(model["name"]) + (f" at {_code(model['revision'])}" if model.get("revision") else ""),
        "samples": f"{facts['samples']} of {up_to}{spec['length']} tokens, {facts['tokens']:,} tokens in all",
    }
    if spec.get("packing"):
        rows["packing"] = f"{_code(spec['packing'])}, begin token: {_code(str(spec.get('bos')))}"
    told = ("generation", "mixture", "filters", "selection")
    rows |= {name: _code(json.dumps(spec[name])) for name in told if spec.get(name) is not None}
    if facts.get("seed") is not None:
        rows["seed"] = str(facts["seed"])
    rows["SHA-256 of the ids"] = _code(facts["set_digest"])
    for name, value in facts.get("account", {}).items():
        rows[name.replace("_", " ")] = f"{value:,}" if isinstance(value, int) else _code(json.dumps(value))
    rows["made by"] = _code(f"secateur {facts.get('secateur')}, {facts.get('finished')}")
    return rows | ({"imported from": _code(imported["from"])} if imported else {})


def _dropped(facts: dict[str, Any]) -> list[str]:
    if not facts.get("dropped"):
        return []
    lines = ["", "## What was dropped, and why", "", "| samples | reason |", "|---|---|"]
    return lines + [f"| {count:,} | {_cell(_code(reason))} |" for reason, count in facts["dropped"].items()]


def _again(facts: dict[str, Any]) -> list[str]:
    """The recipe that makes the set, as far as the recipe of this version can say it."""
    spec = facts["spec"]
    if spec.get("stage") != "calibration":
        return []
    known = {name: spec[name] for name in CalibrationSpec.model_fields if name in spec}
    whole = {"model": facts["model"]["name"], "seed": facts.get("seed"), "calibration": known}
    whole |= {key: spec[key] for key in ("dtype", "device") if key in spec}
    try:
        recipe = Recipe.model_validate(whole).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:
        return []
    recipe = {"model": facts["model"]["name"], "revision": facts["model"].get("revision"), **recipe}
    shown = {key: value for key, value in recipe.items() if value is not None}
    lines = ["", "## To make it again", "", "With this as `recipe.yaml`, `secateur generate recipe.yaml --out SET`"]
    libraries = {name: facts.get("libraries", {}).get(name) for name in ("torch", "transformers")}
    versions = ", ".join(f"{name} {found}" for name, found in libraries.items() if found)
    lines += [f"(the same ids need the same files, kind of hardware and versions: {versions}):", "", "```yaml"]
    text = _yaml(shown)
    return [] if "```" in text else [*lines, text, "```"]  # no name of ours has that in it


def _licence(facts: dict[str, Any]) -> list[str]:
    """Whose terms the text is under."""
    spec, model = facts["spec"], _code(facts["model"]["name"])
    parts = [part["source"] for part in spec.get("mixture") or []] or [facts["source"]]
    said = []
    if SELF in parts:
        said.append(f"Text that {model} wrote is under the terms of its licence; so may be what is made with it.")
    others = [_code(part) for part in parts if part != SELF]
    if others:
        said.append(f"Text from {', '.join(others)} is under the terms of those who wrote it.")
    return ["", "## Licence", "", *said]


def _judged(path: Path, title: str) -> list[str]:
    entries = _entries(path)
    if not entries:
        return [f"## None {title}"]
    values = [entry["value"] for entry in entries]
    span = f"measured value {min(values):.2f} to {max(values):.2f}, median {statistics.median(values):.2f}"
    return [f"## {len(entries)} {title}: {span}", "", *_texts(entries)]


def _texts(entries: list[dict[str, Any]]) -> list[str]:
    """The first characters of a few, indented: a text cannot break out of its block."""
    found = []
    for entry in entries[:SHOWN]:
        found += ["    " + line for line in entry["text"][:CHARACTERS].splitlines()] + ["", "---", ""]
    return found[:-2]


def _entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _code(text: str) -> str:
    """Shown as it is, whoever wrote it."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def _cell(text: str) -> str:
    """Fit for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _yaml(value: dict[str, Any]) -> str:
    stream, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096
    yaml.dump(value, stream)
    return stream.getvalue().rstrip("\n")
