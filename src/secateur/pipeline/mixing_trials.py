"""Running the trials of a search for mixture weights: prune, measure, remember the loss."""

from __future__ import annotations

import math
import operator
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from secateur.errors import NumericsError, StoreError
from secateur.evaluation.perplexity import sequence_losses
from secateur.evaluation.protocol import EvaluationText
from secateur.journal import Journal
from secateur.models.loading import load_model, pick_device, pick_dtype
from secateur.pipeline.calibrate import plan_calibration
from secateur.pipeline.components import ResolvedModel
from secateur.pipeline.evaluate import EvaluationStage
from secateur.pipeline.mixing_plan import Trial, trial_recipe
from secateur.pipeline.prune import plan_prune
from secateur.pipeline.pruning_run import run_together
from secateur.pipeline.recipe import Part, Recipe
from secateur.pipeline.reporter import Reporter
from secateur.pipeline.store import DIGEST_SHOWN, digest_of, locked


@dataclass
class TrialRunner:
    """Prunes and measures trials one after another, in ``place``; a pruned model is gone once its loss is known.

    ``texts``: what the loss is measured on. Calibration sets are kept in ``store``, losses in ``journal``.
    """

    recipe: Recipe
    model: ResolvedModel
    parts: Sequence[Part]
    texts: Sequence[EvaluationStage]
    journal: Journal
    place: Path
    store: Path
    reporter: Reporter

    @cached_property
    def tokenised(self) -> list[EvaluationText]:
        """The validation texts as tokens: the same for all trials."""
        return [text.evaluation_text() for text in self.texts]

    def losses(self, trials: Sequence[Trial], what: str) -> list[float]:
        """The loss of each trial: the mean over the validation texts of the mean loss of their tokens, in nats."""
        known = known_losses(self.journal)
        for done, trial in enumerate(trials):
            self.reporter.progress(what, done, len(trials))
            if trial not in known:
                losses = self.measure(trial)
                known[trial] = statistics.mean(losses.values())
                self.journal.append({"amounts": list(trial.amounts), "seed": trial.seed, "losses": losses})
        self.reporter.progress(what, len(trials), len(trials))
        return [known[trial] for trial in trials]

    def measure(self, trial: Trial) -> dict[str, float]:
        """Make the trial's calibration set, prune, and measure the loss on every validation text."""
        texts = list(zip(self.texts, self.tokenised, strict=True))
        recipe = trial_recipe(self.recipe, self.parts, trial)
        calibration = plan_calibration(recipe, self.model)
        data = calibration.run(calibration.folder(self.store), self.reporter)
        pruning = plan_prune(recipe, self.model)
        folder = self.place / digest_of(pruning.spec(data))[:DIGEST_SHOWN]
        pruning.check_place(folder)
        run_together([pruning], [folder], [data], self.reporter)
        spec = recipe.evaluation
        device = pick_device(recipe.device)
        model = load_model(folder, device, pick_dtype(spec.dtype, device))
        progress = self.reporter.advance("validation")
        found = {}
        for one, text in texts:
            losses = sequence_losses(model, text.sequences, None, progress)
            tokens = [len(sequence) - 1 for sequence in text.sequences]
            found[one.source.name] = sum(map(operator.mul, losses, tokens)) / sum(tokens)
        self._check(trial, found)
        del model
        shutil.rmtree(folder)
        return found

    def _check(self, trial: Trial, losses: dict[str, float]) -> None:
        for text, loss in losses.items():
            if not math.isfinite(loss):
                names = [part.source for part in self.parts]
                amounts = ", ".join(f"{count} of {name!r}" for name, count in zip(names, trial.amounts, strict=True))
                raise NumericsError(
                    f"The trial with {amounts} and seed {trial.seed} has the validation loss {loss} on {text!r}, and such a "
                    "loss cannot be fitted. Evaluate in a wider evaluation.dtype, prune less, or leave out a source."
                )


def known_losses(journal: Journal) -> dict[Trial, float]:
    """The losses in a journal of trials."""
    return {
        Trial(tuple(entry["amounts"]), entry["seed"]): statistics.mean(entry["losses"].values())
        for entry in journal.entries
    }


@contextmanager
def only_one(path: Path) -> Iterator[Journal]:
    """The journal, while no other process has it. Raises ``StoreError`` when one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        with locked(lock, str(path)):
            yield Journal(path)
    except Timeout as error:
        raise StoreError(
            f"Another process is running trials of the same setting right now (lock {lock.lock_file}). Wait for it and run "
            "the same command again: the trials it finished will be used."
        ) from error
