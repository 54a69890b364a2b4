"""Measure a calibration set: every number that can be had of it."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.calibration.context import Context
from secateur.calibration.sample import CalibrationSet, Sample
from secateur.diagnosis.base import Family, Finding, Options, Subject
from secateur.diagnosis.families import MEASURES
from secateur.diagnosis.reference import Reference
from secateur.models.skeleton import Skeleton


def families(only: Sequence[str] | None = None) -> dict[str, Family]:
    """The families of measures by name; ``only`` some of them. Raises ``UnknownNameError`` for a name there is not."""
    return {name: MEASURES.load(name) for name in (MEASURES.entries() if only is None else only)}


def examine(subject: Subject, only: Sequence[str] | None = None) -> dict[str, Finding]:
    """What each family finds, by the family's name."""
    return {name: family.look(subject) for name, family in families(only).items()}


def measure(
    samples: CalibrationSet | Sequence[Sample],
    context: Context,
    reference_texts: Sequence[str] | Reference | None = None,
    skeleton: Skeleton | None = None,
    options: Options | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, float]:
    """Every number of the set by name, as one flat dict; no name depends on the set's content.

    ``reference_texts``: what to compare with; a ``Reference`` keeps what was counted of it for the next set. ``skeleton``:
    the dense model, for what happens inside it. What there are no means for is left out. ``only``: families by name.
    """
    if isinstance(samples, CalibrationSet):
        samples = samples.samples
    if reference_texts is not None and not isinstance(reference_texts, Reference):
        reference_texts = Reference(reference_texts, context.tokenizer, seed=context.seed)
    subject = Subject(samples, context, reference_texts, skeleton, options)
    found = examine(subject, only)
    return {name: value for finding in found.values() for name, value in finding.values.items()}
