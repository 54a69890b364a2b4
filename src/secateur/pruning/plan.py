"""What is to be pruned and how: fixed before anything runs, but for sparsities that follow from the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from secateur.allocation.base import Allocation, LinearSize, Measured
from secateur.errors import UsageError
from secateur.masks import Pattern
from secateur.methods.base import Method
from secateur.methods.initial import united
from secateur.models.skeleton import Skeleton
from secateur.pruning.choice import LeftDense, choose_linears
from secateur.pruning.rehearsal import never_called
from secateur.statistics import ColumnNorms, Gram, Statistic

Propagation = Literal["block", "linear", "dense"]
"""Where a linear's inputs come from: all blocks before it pruned (``block``), all linears before it pruned (``linear``),
or the dense model (``dense``)."""


@dataclass(frozen=True)
class PruningPlan:
    """The method, the pattern, and the linears that are to be pruned (others stay dense).

    ``min_tokens``: an expert that saw fewer is pruned by magnitude. ``permute``: channels inside an MLP are reordered so
    that N:M keeps more (``pruning.permute``). ``output_error``: records say each linear's relative output error.
    ``left``: what of the blocks stays dense although nobody asked for it. ``sparsities``: by linear name, once known.
    """

    method: Method
    pattern: Pattern
    sparsity: float
    allocation: Allocation
    sizes: tuple[LinearSize, ...]
    head: bool = False
    min_tokens: int = 1
    permute: bool = False
    output_error: bool = False
    left: tuple[LeftDense, ...] = ()
    sparsities: dict[str, float] = field(default_factory=dict)

    def statistics(self) -> tuple[type[Statistic], ...]:
        """What is to be known of a linear's inputs: for the method, for the scores that decide a permutation, for the error."""
        return united(
            self.method.statistics(), (ColumnNorms,) if self.permute else (), (Gram,) if self.records_error else ()
        )

    @property
    def records_error(self) -> bool:
        """Whether the output error can be had: a method that needs no data is given none."""
        return self.output_error and bool(self.method.statistics())

    def allocated(self, measured: Sequence[Measured] = ()) -> PruningPlan:
        """The plan with its sparsities, given what the allocation measured on the dense model."""
        return replace(self, sparsities=self.allocation.allocate(self.sizes, self.sparsity, measured, self.pattern))


def plan_pruning(
    skeleton: Skeleton,
    method: Method,
    pattern: Pattern,
    sparsity: float,
    allocation: Allocation,
    skip: Sequence[str] = (),
    head: bool = False,
    min_tokens: int = 1,
    permute: bool = False,
    output_error: bool = False,
    include: Sequence[str] = (),
) -> PruningPlan:
    """Plan to prune the linears of all blocks but those whose names match a glob of ``skip``, and those that steer unless
    they match one of ``include``; with ``head``, the output head too; with ``permute``, reorder channels; with ``output_error``, record what pruning did to outputs. An allocation that need not measure the dense model is applied at once.

    Raises ``PatternError`` when an N:M pattern does not fit a linear, ``UsageError`` when a glob matches nothing or the
    allocation or ``permute`` does not suit the pattern, ``ModelError`` when the head is tied to the embeddings.
    """
    if permute:
        check_permute(pattern)
    choice = choose_linears(skeleton, skip, include, never_called(skeleton))
    linears = [*choice.linears, *([skeleton.head()] if head else [])]
    for linear in linears:
        pattern.check_width(linear.inputs, linear.name)
    if allocation.measures and pattern.structured and not pattern.mixed:
        raise UsageError(
            f"{type(allocation).__name__} gives every linear a sparsity of its own, which the pattern {pattern} does not "
            f"allow. Use the pattern 'mixed {pattern}' (no hardware format), or allocation uniform."
        )
    sizes = tuple(LinearSize(linear.name, linear.block, linear.inputs * linear.outputs) for linear in linears)
    plan = PruningPlan(
        method, pattern, sparsity, allocation, sizes, head, min_tokens, permute, output_error, choice.left
    )
    return plan if allocation.measures else plan.allocated()


def check_permute(pattern: Pattern, propagation: Propagation = "block") -> None:
    """Raise ``UsageError`` unless channels can be reordered with this pattern and propagation."""
    if not pattern.structured:
        raise UsageError(
            f"pruning.permute reorders channels so that N:M keeps more; with the pattern {pattern} their order makes no "
            "difference. Ask for a pattern such as '2:4', or leave pruning.permute false."
        )
    if propagation == "linear":
        raise UsageError(
            "pruning.permute decides the order of an MLP's channels before its first linear is pruned, but with "
            "pruning.propagation 'linear' the inputs of its last are not known by then. Set it to block or dense."
        )
