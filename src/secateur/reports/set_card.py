"""The card of a calibration set."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from secateur.pipeline.store import read_manifest

SHOWN, CHARACTERS = 3, 240


def set_card(folder: Path) -> str:
    """Markdown: what the set was made from, how, and what kept and dropped samples look like."""
    manifest = read_manifest(folder) or {}
    spec = manifest["spec"]
    rows = {
        "source": f"`{manifest['source']}`",
        "model": f"`{manifest['model']['name']}`",
        "samples": f"{manifest['samples']} of {spec['length']} tokens, {manifest['tokens']:,} tokens in all",
        "packing": f"`{spec['packing']}`, begin token: `{spec['bos']}`",
        "filters": f"`{json.dumps(spec['filters'])}`",
        "seed": str(manifest["seed"]),
        "SHA-256 of the ids": f"`{manifest['set_digest']}`",
    }
    if "generation" in spec:
        rows["generation"] = f"`{json.dumps(spec['generation'])}`"
    rows |= {name.replace("_", " "): f"{value:,}" for name, value in manifest["account"].items()}
    lines = ["---", "tags: [calibration, secateur]", "---", "", "# Calibration set", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "`samples.jsonl` is the set: its `token_ids` count, its `text` is for people."]
    for name, title in (("kept.jsonl", "kept"), ("dropped.jsonl", "dropped")):
        if (folder / name).exists():
            lines += ["", *_judged(folder / name, title)]
    if not (folder / "kept.jsonl").exists():
        lines += ["", "## Samples", "", *_texts(_entries(folder / "samples.jsonl"))]
    return "\n".join(lines) + "\n"


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
