"""One model type from its configuration to a compared, pruned model: a row of the table."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from model_types.build import NotBuilt, load, make, sequences, smallest_vocabulary
from model_types.compare import Comparison, Oracle, in_kinds
from model_types.pruning import Progress, Setting, add_tokenizer, calibration_set, prune
from secateur.errors import SecateurError

Outcome = Literal[
    "agrees", "agrees unpadded", "differs", "refused beforehand", "stopped", "traceback", "not built", "no answer"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""From good to bad. Unpadded: one sequence at a time, where transformers itself computes something else with padding."""

PADDING_IS_FELT = 1e-4


@dataclass
class Row:
    """What became of a type. ``detail``: the sentence that goes with the outcome. ``unseen``: pruned linears that the
    comparison did not see. ``settings``: by setting, the share of mask entries that differ, the worst linear's, and how
    far masks by weights alone would be."""

    model_type: str
    class_name: str = ""
    outcome: Outcome = "no answer"
    detail: str = ""
    linears: int = 0
    compared: int = 0
    unseen: dict[str, str] = field(default_factory=dict)
    left_dense: list[str] = field(default_factory=list)
    pruned_share: float = 0.0
    said: list[str] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def lower(self, outcome: Outcome, detail: str) -> None:
        """Note an outcome; what is worse stays, of what is as bad the first."""
        if self.outcome == "no answer" or OUTCOMES.index(outcome) > OUTCOMES.index(self.outcome):
            self.outcome, self.detail = outcome, detail


def settings(methods: Sequence[str]) -> list[Setting]:
    return [
        Setting(method, pattern, propagation)
        for method in methods
        for pattern in ("2:4", "unstructured")
        for propagation in ("block", "dense")
    ]


def try_type(model_type: str, place: Path, asked: Sequence[Setting]) -> Row:
    """Build, save, prune and compare a type inside the folder ``place``; never raises for what the type does."""
    started, row = time.perf_counter(), Row(model_type)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        made = make(model_type, place / "dense")
        row.class_name, row.made = made.class_name, asdict(made)
        _prune_and_compare(row, place, asked)
    except NotBuilt as error:
        row.lower("not built", str(error))
    except Exception as error:  # of the harness or of transformers: the row says so
        row.lower("traceback", last_line(error))
    row.seconds = time.perf_counter() - started
    return row


def _prune_and_compare(row: Row, place: Path, asked: Sequence[Setting]) -> None:
    dense = place / "dense"
    model = load(dense)
    tokens = sequences(model)
    add_tokenizer(dense, smallest_vocabulary(model.config))
    oracle = Oracle(model, tokens)
    calibration = None
    for setting in asked:
        progress = Progress()
        try:
            calibration = calibration or calibration_set(dense, tokens, place / "set")
            comparison = _compared(row, oracle, dense, calibration, setting, progress)
            gap = oracle.padding_matters() if comparison.differing() else 0.0
            if gap > PADDING_IS_FELT:
                alone = _compared(row, oracle, dense, calibration, replace(setting, batch=1), progress)
                if not alone.differing():
                    row.lower(
                        "agrees unpadded", f"padding changes the dense model's own logits by {gap:.1%} of the largest"
                    )
                    comparison = alone
            judge(row, comparison)
        except SecateurError as error:
            row.lower("stopped" if progress.begun else "refused beforehand", f"{setting}: {error}")
            if not progress.begun:
                return
        except Exception as error:
            row.lower("traceback", f"{setting}: {last_line(error)}")


def _compared(
    row: Row, oracle: Oracle, dense: Path, calibration: Path, setting: Setting, progress: Progress
) -> Comparison:
    out = dense.parent / "pruned"
    try:
        pruned = prune(dense, calibration, setting, out, progress)
        row.linears, row.said = len(pruned.records), pruned.left
        return oracle.compare(pruned, setting)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def judge(row: Row, comparison: Comparison) -> None:
    """Add what was found for one setting to the row."""
    setting, worst = comparison.setting, comparison.worst
    entries = max(1, sum(one.entries for one in comparison.compared))
    row.unseen |= comparison.unseen
    row.left_dense, row.pruned_share = in_kinds(comparison.left_dense), comparison.pruned_share
    row.compared = max(row.compared, len(comparison.compared))
    row.settings[str(setting)] = {
        "share": sum(one.different for one in comparison.compared) / entries,
        "blind": sum(one.blind for one in comparison.compared) / entries,
        "worst": worst.share if worst else None,
        "worst_linear": worst.name if worst else None,
        "problems": comparison.problems[:5],
    }
    row.lower("agrees", "")
    if comparison.problems:
        row.lower("differs", f"{setting}: {comparison.problems[0]}")
    if not comparison.compared:
        row.lower("differs", f"{setting}: nothing that was pruned could be compared")
    differing = comparison.differing()
    if differing:
        kinds = ", ".join(in_kinds([one.name for one in differing])[:4])
        most = max(one.share for one in differing)
        found = f"{len(differing)} of {len(comparison.compared)} linears, up to {most:.1%} of a mask: {kinds}"
        row.lower("differs", f"{setting}: {found}")


def last_line(error: BaseException) -> str:
    """Where an error was raised, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
