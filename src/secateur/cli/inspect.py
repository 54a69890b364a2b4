"""secateur inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from secateur.cli.common import Output
from secateur.pipeline.store import DIGEST_SHOWN


def inspect_(
    target: Annotated[str, Parameter(help="A folder that Secateur made, or a model.")],
    *,
    common: Output = Output(),  # noqa: B008 - cyclopts fills it
) -> int:
    """Say what a folder or a model is: sparsity, pattern, calibration data, provenance."""
    from secateur.cli.console import print_json, print_line, print_table
    from secateur.pipeline.store import read_manifest

    manifest = read_manifest(Path(target)) if Path(target).is_dir() else None
    if manifest and manifest["kind"] == "calibration" and not common.json:
        for line in _set_lines(Path(target), manifest):
            print_line(line)
        return 0
    if manifest and manifest["kind"] != "pruned":
        print_json(manifest)
        return 0
    found = _measure(target)
    if manifest:
        found["manifest"] = {key: manifest[key] for key in ("model", "spec", "calibration", "finished", "secateur")}
    if common.json:
        print_json(found)
        return 0
    print_line(f"{target}: {found['parameters']:,} parameters in {found['blocks']} blocks, stored as {found['dtype']}")
    if manifest:
        for line in _pruned_lines(manifest):
            print_line(line)
    rows = [
        [row["kind"], str(row["linears"]), f"{row['weights']:,}", f"{row['sparsity']:.2%}", row["pattern"]]
        for row in found["kinds"]
    ]
    print_table(["linear", "count", "weights", "zeros", "pattern held"], rows)
    print_line(f"zeros among the weights of all linears in blocks: {found['sparsity']:.2%}")
    return 0


def _pruned_lines(manifest: dict[str, Any]) -> list[str]:
    """How a model was pruned, on what, and when."""
    from secateur.cli.runs import minute

    spec, data = manifest["spec"], manifest["calibration"]
    aim = (
        spec["pattern"] if spec["pattern"] != "unstructured" else f"unstructured to a sparsity of {spec['sparsity']:g}"
    )
    used = "without calibration data"
    if data:
        source = manifest["recipe"]["calibration"]["source"]
        used = f"on {data['samples']} samples, {data['tokens']:,} tokens, of {source} (set {data['set_digest'][:DIGEST_SHOWN]})"
    return [
        f"pruned from {manifest['model']['name']!r} by {spec['method']['name']}, {aim}, {used}",
        f"finished {minute(manifest['finished'])}, Secateur {manifest['secateur']}",
    ]


def _set_lines(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """A calibration set in short: what it holds, what it was made from and for, and what is odd about it."""
    from secateur.cli.generate import set_lines
    from secateur.cli.runs import minute

    spec = manifest["spec"]
    lines = set_lines(folder, manifest)
    lines.append(f"tokens           {manifest['tokens']:,} in all; set {manifest['set_digest'][:DIGEST_SHOWN]}")
    lines.append(f"made for         {manifest['model']['name']}")
    if "packing" in spec:
        filters = ", ".join(one["name"] for one in spec.get("own_filters") or spec["filters"] or []) or "none"
        lines.append(f"drawn            packing {spec['packing']}, filters {filters}, seed {manifest['seed']}")
    lines.append(f"finished         {minute(manifest['finished'])}, Secateur {manifest['secateur']}")
    lines += [f"warning          {warning}" for warning in manifest.get("warnings", [])]
    return [*lines, "The whole manifest: --json."]


def _measure(target: str) -> dict[str, Any]:
    """Read every linear of the blocks: zeros, and the N:M patterns all its groups hold."""
    from secateur.models.skeleton import Skeleton
    from secateur.pipeline.components import resolve_model

    skeleton = Skeleton(resolve_model(target).folder)
    kinds: dict[str, dict[str, Any]] = {}
    for index in range(len(skeleton.blocks)):
        for linear in skeleton.linears(index):
            weight = skeleton.weight(linear)
            kind = linear.name.removeprefix(f"{skeleton.prefix}.{index}.")
            row = kinds.setdefault(kind, {"kind": kind, "linears": 0, "weights": 0, "zeros": 0, "held": {"2:4", "4:8"}})
            row["linears"] += 1
            row["weights"] += weight.numel()
            row["zeros"] += int((weight == 0).sum())
            row["held"] &= _patterns_held(weight)
    rows = []
    for row in kinds.values():
        held = row.pop("held")
        rows.append(
            row
            | {"sparsity": row["zeros"] / row["weights"], "pattern": "2:4" if "2:4" in held else ", ".join(held) or "-"}
        )
    weights, zeros = sum(row["weights"] for row in rows), sum(row["zeros"] for row in rows)
    return {
        "parameters": skeleton.checkpoint.parameters,
        "blocks": len(skeleton.blocks),
        "dtype": str(skeleton.dtype).removeprefix("torch."),
        "sparsity": zeros / weights,
        "kinds": rows,
    }


def _patterns_held(weight: Any) -> set[str]:
    held = set()
    for keep, group in ((2, 4), (4, 8)):
        if weight.shape[1] % group == 0 and bool(((weight.reshape(-1, group) != 0).sum(dim=1) <= keep).all()):
            held.add(f"{keep}:{group}")
    return held
