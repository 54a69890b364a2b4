"""The samples whose gradients point where those of a target task do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from secateur.calibration.context import Context
from secateur.calibration.packing import Document, Packing
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection
from secateur.calibration.selection.ranking import lowest
from secateur.errors import CalibrationError, UsageError

TEXTS_AT_MOST = 10_000


@dataclass(frozen=True)
class Influence(Selection):
    """The samples whose loss gradients are most like those of target texts.

    ``score(x) = max over targets of mean over z of cos(step(x), grad(z))``: ``grad`` is the gradient of the mean token loss
    in low-rank adapters of the blocks' linears, ``step`` the step that Adam would take along it, both randomly projected
    to ``dimensions`` (the paper: 8192). ``targets`` are names of sources of text; of each, ``target_samples`` windows as
    long as the pool's samples are drawn by the seed. The highest scores are chosen.
    Cost: one forward and one backward a sample of the pool and of the targets, and a second over a part of the pool for
    Adam's moments; memory of the model, of one batch's activations and of three gradients of the adapters.
    Source: LESS, Xia et al. 2024, arXiv 2402.04333, section 4. Left out: the warm-up training, so there is one
    checkpoint, the model as it is.
    """

    pool: float = 4.0
    targets: list[str] = field(default_factory=list)
    target_samples: int = 32
    dimensions: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise UsageError(
                "The selection influence needs to be told for which task: set targets to the names of sources of its text, "
                "e.g. calibration.selection={name: influence, targets: [prose]}."
            )
        if self.target_samples < 1 or self.dimensions < 1:
            raise UsageError(
                "The target_samples and dimensions of the selection influence are at least 1; "
                f"found {self.target_samples} and {self.dimensions}."
            )

    @property
    def reads(self) -> Reads:
        return Reads(sources=tuple(self.targets))

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        targets = [self._windows(target, samples, context) for target in self.targets]
        steps = _unit(context.gradients(samples, self.dimensions, True))
        likeness = [
            (steps @ _unit(context.gradients(windows, self.dimensions, False)).T).mean(axis=1) for windows in targets
        ]
        values = np.max(likeness, axis=0).tolist()
        return Choice(lowest([-value for value in values], count, "gradient"), values)

    def _windows(self, target: str, samples: Sequence[Sample], context: Context) -> Sequence[Sample]:
        """Windows of a target's text as long as the longest of ``samples``, with a begin token if all of them have one."""
        tokenizer = context.tokenizer
        first = {sample.token_ids[0] for sample in samples}
        begin = first.pop() if len(first) == 1 and first <= set(tokenizer.all_special_ids) else None
        length = max(len(sample.token_ids) for sample in samples)
        texts = list(islice(context.source_texts(target), TEXTS_AT_MOST))
        random.Random(context.seed).shuffle(texts)
        documents = (Document(tuple(tokenizer.encode(text, add_special_tokens=False))) for text in texts)
        packing = Packing(length, "concat", "none" if begin is None else "sample", begin)
        try:
            return packing.pack(documents, self.target_samples, context.seed, target).samples
        except CalibrationError as error:
            raise CalibrationError(
                f"The selection influence cannot draw its target_samples: {error} Or lower target_samples."
            ) from error


def _unit(rows: np.ndarray) -> np.ndarray:
    """The rows in fp64, each of unit length; one that is zero stays so."""
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
