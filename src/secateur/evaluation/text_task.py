"""Tasks that are made of a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from secateur.calibration.sources.base import TextSource
from secateur.calibration.sources.resolve import resolve_text_source
from secateur.evaluation.task import EvaluationTask

HELDOUT = "stdlib-heldout"


@dataclass(frozen=True)
class TextTask(EvaluationTask):
    """``text``: a source of text; ``text_key`` and ``split`` as for evaluation.text. ``None``: the task's own."""

    text: str | None = HELDOUT
    text_key: str = "text"
    split: str | None = "test"

    def source(self) -> TextSource:
        return resolve_text_source(self.text or HELDOUT, self.text_key, self.split or "test")

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self), "text_fingerprint": self.source().fingerprint()}
