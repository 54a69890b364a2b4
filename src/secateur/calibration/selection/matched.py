"""The control that separates "self-generated" from "of low perplexity": real samples as likely as another set's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from secateur.calibration.context import Context
from secateur.calibration.reads import Reads
from secateur.calibration.sample import Sample, read_samples
from secateur.calibration.selection.base import Choice, Selection
from secateur.errors import CalibrationError, UsageError


@dataclass(frozen=True)
class Matched(Selection):
    """Samples whose perplexities are those of another set, one for one (a control).

    ``to`` is the folder of a finished set. Its samples are taken in turn, as often as the count asks, and each is given
    the sample of the pool whose log-perplexity under the model is nearest, so that the sum of the distances is least
    (linear sum assignment). Cost: one scoring of the pool and of the set, and an assignment of count x pool.
    """

    to: str = ""
    pool: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.to:
            raise UsageError("The selection 'matched' needs to be told which set: {name: matched, to: FOLDER}.")

    @property
    def reads(self) -> Reads:
        return Reads(sets=(self.to,))

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        path = Path(self.to) / "samples.jsonl"
        if not path.is_file():
            raise CalibrationError(f"{self.to} is no finished calibration set to match: it has no {path.name}.")
        wanted = read_samples(path)
        logs = np.array(context.mean_logprobs(samples))
        targets = np.resize(np.array(context.mean_logprobs(wanted)), count)
        if not (np.isfinite(logs).all() and np.isfinite(targets).all()):
            raise CalibrationError("Some samples have no finite perplexity, so they cannot be matched.")
        _, columns = linear_sum_assignment(np.abs(targets[:, None] - logs[None, :]))
        return Choice([int(column) for column in columns], np.exp(-logs).tolist())
