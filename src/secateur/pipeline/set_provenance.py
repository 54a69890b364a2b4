"""What goes with a calibration set that is shared: how it was made, without this machine's folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.pipeline.calibration_stage import DROPPED
from secateur.pipeline.store import read_manifest

PROVENANCE = "provenance.json"


class _Loose(BaseModel):
    """What must be there is of its type; more may be."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Part(_Loose):
    source: str


class _Spec(_Loose):
    stage: str
    length: int
    packing: str | None = None
    bos: str | None = None
    mixture: list[_Part] = []


class _Model(_Loose):
    name: str
    revision: str | None = None


class Provenance(_Loose):
    """The facts of a set that others should know: those of its manifest, and for which reasons how many samples were
    dropped."""

    spec: _Spec
    model: _Model
    source: str
    set_digest: str
    samples: int
    tokens: int
    account: dict[str, Any] = {}
    seed: int | None = None
    finished: str = ""
    secateur: str | None = None
    libraries: dict[str, Any] = {}
    dropped: dict[str, int] = {}


def provenance_of(folder: Path) -> dict[str, Any]:
    """The provenance of a finished set; of an imported one, that which came with it."""
    manifest = read_manifest(folder) or {}
    made_by = manifest.get("imported", {}).get("made_by")
    if made_by:
        return made_by
    dropped: Counter[str] = Counter()
    if (folder / DROPPED).exists():
        lines = (folder / DROPPED).read_text(encoding="utf-8").split("\n")
        dropped.update(json.loads(line).get("reason", "") for line in lines if line)
    facts = {name: manifest[name] for name in Provenance.model_fields if name in manifest}
    return _public(facts | {"dropped": dict(dropped)})


def read_provenance(place: Path, set_digest: str) -> tuple[dict[str, Any] | None, str]:
    """That beside shared data, for the set of this digest; or why there is none to be used, empty if it is not there."""
    try:
        found = json.loads((place / PROVENANCE).read_text(encoding="utf-8"))
        Provenance.model_validate(found)
    except OSError:
        return None, ""
    except (ValueError, ValidationError):
        return None, f"{place / PROVENANCE} is not what Secateur writes; it is left aside."
    if found["set_digest"] != set_digest:
        return None, f"{place / PROVENANCE} describes other token ids than those beside it; it is left aside."
    return found, ""


def _public(value: Any) -> Any:
    """Absolute paths cut to their last part: a local folder's place is nobody else's business."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, entry in value.items():
            name = _public(key)
            found[name if name not in found else f"{name} ({len(found)})"] = _public(entry)
        return found
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if isinstance(value, str):
        path = Path(value.removeprefix("file:"))
        with suppress(OSError, ValueError):  # a string that no file system could take for a path
            return path.name if path.is_absolute() and path.exists() else value
    return value
