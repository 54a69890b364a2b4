"""Pruning one linear: its stored weight goes to the method, the result to the output checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from secateur.errors import NumericsError, SecateurError
from secateur.methods.base import Method
from secateur.methods.magnitude import Magnitude
from secateur.models.skeleton import Skeleton
from secateur.models.structure import Linear
from secateur.pruning.plan import PruningPlan
from secateur.pruning.records import LinearRecord
from secateur.statistics import Gram, InputStatistics

FALLBACK = "too_few_tokens"
"""Note of a linear that saw fewer tokens than asked and was pruned by magnitude."""


@dataclass(frozen=True)
class PrunedLinear:
    """What became of one linear: its new weight ``[out, in]`` in the dtype it is stored in, and its record."""

    weight: Tensor
    record: LinearRecord


@dataclass(frozen=True)
class Layout:
    """The order in which a linear is saved: its inputs ``columns`` ``[in]`` int64, decided before it is pruned, and its
    outputs ``rows`` ``[out]``, put in order afterwards; ``None``: as they are. ``moved``: of ``LinearRecord``."""

    rows: Tensor | None = None
    columns: Tensor | None = None
    moved: dict[str, int] = field(default_factory=dict)


AS_STORED = Layout()


def prune_linear(
    skeleton: Skeleton,
    linear: Linear,
    plan: PruningPlan,
    stats: InputStatistics | None,
    layout: Layout = AS_STORED,
) -> PrunedLinear:
    """Prune ``linear`` as ``plan`` says. An expert with fewer tokens than ``plan.min_tokens`` is pruned by magnitude.

    ``stats`` are those of the inputs as the dense model has them, whatever the ``layout``.
    Raises what the method raises, naming the linear, and ``NumericsError`` for a weight that is not finite.
    """
    started = time.perf_counter()
    stored = skeleton.weight(linear)
    weight = stored.to(skeleton.device, torch.float32)
    sparsity = plan.sparsities[linear.name]
    found = InputStatistics() if stats is None else stats
    method, notes = method_for(linear, plan, found)
    try:
        with torch.inference_mode():
            if layout.columns is not None:
                weight, found = weight[:, layout.columns.to(weight.device)], found.permuted(layout.columns)
            pruned = method.prune(weight, found, plan.pattern.at(sparsity), sparsity)
    except SecateurError as error:
        raise type(error)(f"{linear.name} (block {linear.block}): {error}") from error
    if plan.records_error and found.tokens:
        notes = notes | {"output_error": relative_error(weight, pruned.weight, found[Gram])}
    sound = _finite(weight)
    del weight
    result = pruned.weight.to(stored.dtype)
    if layout.rows is not None:
        result = result[layout.rows.to(result.device)]
    _check_finite(sound, result, linear)
    record = LinearRecord(
        name=linear.name,
        key=skeleton.stored.key(linear.weight.parameter),
        block=linear.block,
        outputs=linear.outputs,
        inputs=linear.inputs,
        sparsity=sparsity,
        pruned=pruned.mask.numel() - _count(pruned.mask),
        zeros=_count(result == 0),
        tokens=round(found.tokens, 3),
        seconds=time.perf_counter() - started,
        transposed=linear.transposed,
        notes={**pruned.notes, **notes},
        order=[] if layout.columns is None else layout.columns.tolist(),
        moved=layout.moved,
    )
    return PrunedLinear(result, record)


def method_for(linear: Linear, plan: PruningPlan, stats: InputStatistics) -> tuple[Method, dict[str, float]]:
    """The method that prunes ``linear`` given what is known of its inputs, and the notes to make of it."""
    method = plan.method.for_linear(linear.name)
    if linear.experts is not None and method.statistics() and stats.tokens < plan.min_tokens:
        return Magnitude(), {FALLBACK: 1.0}
    return method, {}


def relative_error(weight: Tensor, pruned: Tensor, gram: Gram) -> float:
    """``||X (W_hat - W)^T||^2 / ||X W^T||^2`` over the calibration tokens X; 0 where the outputs were 0."""
    with torch.inference_mode():
        whole = gram.energy(weight)
        return max(gram.energy(pruned.to(weight) - weight), 0.0) / whole if whole > 0 else 0.0


def _finite(weight: Tensor) -> Tensor:
    """Whether every number is finite; without a tensor of answers, for NaN and infinity reach the extremes."""
    low, high = weight.aminmax()
    return low.isfinite() & high.isfinite()


def _count(true: Tensor) -> int:
    """How many are True; NumPy counts several times faster than torch."""
    return int(np.count_nonzero(true.numpy())) if true.device.type == "cpu" else int(true.count_nonzero())


def _check_finite(sound: Tensor, result: Tensor, linear: Linear) -> None:
    """``sound``: whether the stored weight was finite. A NaN may be pruned away, which would hide a damaged model."""
    if bool(sound & _finite(result)):
        return
    if not bool(sound):
        raise NumericsError(
            f"The stored weights of {linear.name} (block {linear.block}) are not finite: they hold NaN or infinity. The "
            "model is damaged; download or save it again, or leave this linear dense with pruning.skip."
        )
    raise NumericsError(
        f"Pruning {linear.name} (block {linear.block}) gave weights that are not finite: its Gram matrix is too "
        "ill-conditioned. Raise the damping, or use more calibration data."
    )
