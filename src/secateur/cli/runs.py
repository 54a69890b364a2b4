"""What the store holds, for ``secateur ls runs``; reads manifests only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from secateur.models.locate import decides
from secateur.pipeline.store import DIGEST_SHOWN, digest_of, read_manifest


def runs(store: Path) -> list[dict[str, Any]]:
    """Every folder of the store: kind, what it is, when it was finished; the newest first, the unfinished last."""
    folders = [path for path in sorted(store.glob("*/*")) if path.is_dir()]
    manifests = {folder: None if folder.name.startswith(".") else read_manifest(folder) for folder in folders}
    models = _models(manifests)
    found = []
    for folder, manifest in manifests.items():
        kind, finished = (manifest["kind"], manifest["finished"]) if manifest else ("unfinished", "-")
        what = _what(manifest, models) if manifest else ""
        found.append({"kind": kind, "what": what, "finished": finished, "folder": str(folder)})
    return sorted(found, key=lambda row: "" if row["finished"] == "-" else row["finished"], reverse=True)


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As ``runs``, with the time to the minute, where one is."""
    return [row | {"finished": minute(row["finished"])} for row in rows]


def minute(finished: str) -> str:
    """A manifest's time, local and without seconds."""
    return finished if finished == "-" else f"{datetime.fromisoformat(finished).astimezone():%Y-%m-%d %H:%M}"


def _models(manifests: Mapping[Path, dict[str, Any] | None]) -> dict[str, str]:
    """The names of models by digest: evaluations and cells know only that."""
    found: dict[str, str] = {}
    for folder, manifest in manifests.items():
        if not manifest:
            continue
        model = manifest.get("model")
        if isinstance(model, dict) and "digest" in model:
            found[model["digest"]] = str(model["name"])
        if manifest["kind"] == "pruned":
            files = manifest.get("files", {})
            deciding = {name: sha for name, sha in files.items() if name.endswith(".safetensors") or decides(name)}
            found[digest_of(deciding)] = folder.name
    return found


def _what(manifest: dict[str, Any], models: Mapping[str, str]) -> str:
    """What a folder is of, in a few words; of kinds that are not known here, the model alone."""
    spec, kind = manifest["spec"], manifest["kind"]
    if kind == "calibration":
        return f"{manifest['source']}, {manifest['samples']} samples"
    if kind == "evaluation":
        return f"{_evaluated(spec, models)} on {manifest['text']}"
    if kind == "study":
        return spec.get("question", "")
    pruning = spec if kind == "pruned" else spec.get("pruning")
    if pruning:
        share = f"{pruning['sparsity']:.0%}" if pruning["pattern"] == "unstructured" else pruning["pattern"]
        return f"{_model(pruning['model'], models)}, {pruning['method']['name']}, {share}"
    return _model(spec["model"], models) if isinstance(spec.get("model"), str) else ""


def _evaluated(spec: dict[str, Any], models: Mapping[str, str]) -> str:
    """The model of an evaluation; where it is gone, what it was made from."""
    dense = models.get(spec.get("dense") or "")
    return f"a pruned {dense}" if dense and spec["model"] not in models else _model(spec["model"], models)


def _model(digest: str, models: Mapping[str, str]) -> str:
    return models.get(digest, f"model {digest[:DIGEST_SHOWN]}")
