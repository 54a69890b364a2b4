"""The model card of a pruned model, from its manifest and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateur.evaluation.capabilities import accuracy_of
from secateur.evaluation.protocol import said


def model_card(manifest: dict[str, Any], scores: dict[str, Any], dense_scores: dict[str, Any]) -> str:
    """Markdown with the front matter that the Hub reads."""
    spec, origin = manifest["spec"], manifest["model"]
    name = Path(origin["name"]).name if Path(origin["name"]).exists() else origin["name"]
    verified = manifest["verification"]
    lines = [
        *_front_matter(origin["name"], spec["method"]["name"]),
        f"# {name}, pruned to {manifest['sparsity']:.1%} ({spec['pattern']}) with {spec['method']['name']}",
        "",
        "The weights that were pruned are exact zeros in plain, dense safetensors: the files are as large as before, and",
        "nothing runs faster by itself. Load it as any other model:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("PATH_TO_THIS_FOLDER")',
        "```",
        "",
        "## What was done",
        "",
        "| | |",
        "|---|---|",
        f"| dense model | `{name}`" + (f" at `{origin['revision']}`" if origin["revision"] else "") + " |",
        f"| method | `{json.dumps(spec['method'])}` |",
        f"| pattern, sparsity asked | {spec['pattern']}, {spec['sparsity']:g} |",
        f"| zeros among the prunable weights | {manifest['sparsity']:.4%} ({manifest['pruned_weights']:,} pruned of {manifest['weights']:,}) |",
        f"| zeros among all stored numbers | {manifest['sparsity_of_all']:.4%} |",
        f"| calibration data | {_calibration(manifest)} |",
        f"| verified after saving | {verified['linears']} pruned tensors, {verified['untouched']} others bit-identical to the dense model's |",
        f"| made by | secateur {manifest['secateur']} with torch {manifest['libraries']['torch']}, transformers {manifest['libraries']['transformers']} |",
        "",
        *_scores(scores, dense_scores),
        *_warnings(manifest.get("warnings", [])),
        "## To make it again",
        "",
        "`manifest.json` has the whole recipe, every version, digest and seed; `pruning.jsonl` what was done to each linear.",
        "",
        "The terms of the dense model apply to this one.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(base: str, method: str) -> list[str]:
    """A Hub id as base model; a local folder's name is nobody else's business."""
    base_line = [f"base_model: {json.dumps(base)}"] if "/" in base and not Path(base).exists() else []
    return ["---", *base_line, "library_name: transformers", f"tags: [pruned, secateur, {method}]", "---", ""]


def _calibration(manifest: dict[str, Any]) -> str:
    found = manifest["calibration"]
    if found is None:
        return "none (this method needs none)"
    source = manifest["recipe"]["calibration"]["source"]
    what = "text the dense model wrote itself" if source == "self" else f"`{source}`"
    return f"{what}: {found['samples']} samples, {found['tokens']:,} tokens (ids' SHA-256 `{found['set_digest'][:16]}`)"


def _scores(scores: dict[str, Any], dense_scores: dict[str, Any]) -> list[str]:
    if not scores:
        return []
    found = scores["perplexity"]
    lines = [
        "## Scores",
        "",
        f"Perplexity by `{found['protocol']}`{said(found).removeprefix(found['protocol'])}, over {found['tokens']:,} tokens.",
        *([found["note"]] if "note" in found else []),
        "",
        "| | perplexity |",
        "|---|---|",
    ]
    if dense_scores:
        dense = dense_scores["perplexity"]["value"]
        lines += [f"| dense | {dense:.3f} |", f"| this model | {found['value']:.3f} ({found['value'] / dense:.2f} x) |"]
    else:
        lines += [f"| this model | {found['value']:.3f} |"]
    if "fidelity" in scores:
        f = scores["fidelity"]
        lines += [
            "",
            f"Against the dense model: KL {f['kl']:.4f} nats, Jensen-Shannon {f['js']:.4f} nats, same likeliest token {f['top1']:.1%}.",
        ]
    return [*lines, *_tasks(scores.get("tasks", {}), dense_scores.get("tasks", {})), ""]


def _tasks(tasks: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """The accuracy of each task that has one, its standard error, and what chance gives."""
    rows = []
    for name, own in tasks.items():
        value, theirs = accuracy_of(own), accuracy_of(dense.get(name, {}))
        if value is not None:
            known = own.get("acc_stderr") and value == own.get("acc")
            error = f" ± {own['acc_stderr']:.3f}" if known else ""
            before = "" if theirs is None else f"{theirs:.3f}"
            chance = "" if own.get("chance") is None else f"{own['chance']:.3f}"
            rows.append(f"| {name} | {value:.3f}{error} | {before} | {chance} |")
    return ["", "| task | accuracy ± standard error | dense | chance |", "|---|---|---|---|", *rows] if rows else []


def _warnings(warnings: list[str]) -> list[str]:
    return ["## To know", "", *(f"- {warning}" for warning in warnings), ""] if warnings else []
