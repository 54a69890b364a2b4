"""What a measure of a calibration set is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.diagnosis.facts import TextFacts
from secateur.diagnosis.observation import Observed, observe
from secateur.diagnosis.reference import Reference
from secateur.errors import CalibrationError, UsageError
from secateur.masks import Pattern
from secateur.masks.pattern import UNSTRUCTURED
from secateur.models.skeleton import Skeleton

PERMUTATIONS, MIN_K_SHARE, BATCH = 256, 0.5, 8


@dataclass(frozen=True)
class Options:
    """``permutations``: of MinHash. ``min_k``: the share of tokens that Min-K % looks at. ``pattern`` and ``sparsity``: of
    the Wanda masks that are compared. ``batch``: samples at once through a block. ``activation_bytes``: hidden states beyond
    this go to disk."""

    permutations: int = PERMUTATIONS
    min_k: float = MIN_K_SHARE
    pattern: Pattern = UNSTRUCTURED
    sparsity: float = 0.5
    batch: int = BATCH
    activation_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.permutations < 2:
            raise UsageError(f"MinHash needs at least 2 permutations; found {self.permutations}.")
        if not 0 < self.min_k <= 1:
            raise UsageError(f"Min-K % looks at a share of the tokens above 0 and at most 1; found {self.min_k}.")


class Subject:
    """A calibration set under examination. Everything is made when first asked for, and kept.

    ``reference``: text to compare with. ``skeleton``: the dense model, for what happens inside it. Without them what needs
    them is left out.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        context: Context,
        reference: Reference | None = None,
        skeleton: Skeleton | None = None,
        options: Options | None = None,
    ) -> None:
        if not samples:
            raise CalibrationError("A calibration set without samples cannot be measured; make one with 'generate'.")
        self.samples, self.context = samples, context
        self.reference, self.skeleton = reference, skeleton
        self.options = options or Options()

    @cached_property
    def facts(self) -> TextFacts:
        ids = [sample.token_ids for sample in self.samples]
        return TextFacts(self.context.texts(self.samples), ids, self.context.tokenizer)

    @cached_property
    def observed(self) -> Observed | None:
        """What the dense model does with the set."""
        if self.skeleton is None:
            return None
        ids = [sample.token_ids for sample in self.samples]
        return observe(self.skeleton, ids, self.options.batch, self.options.activation_bytes)

    @cached_property
    def observed_reference(self) -> Observed | None:
        """What the dense model does with as many samples of the reference, of the same length."""
        if self.skeleton is None or self.reference is None:
            return None
        return self.reference.observed(self.skeleton, self.samples, self.options.batch, self.options.activation_bytes)


@dataclass(frozen=True)
class Quantity:
    """One number of a set: ``label`` and ``meaning`` for people (formula, source), ``shown``: how to format it."""

    label: str
    meaning: str
    shown: str = ".3f"


@dataclass(frozen=True)
class Finding:
    """What one family measured: ``values`` by name; ``details``: what figures need, as JSON."""

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Measures that are taken together. ``look`` gives values for some of ``quantities``: those it has the means for."""

    title: str
    quantities: dict[str, Quantity]
    look: Callable[[Subject], Finding]
