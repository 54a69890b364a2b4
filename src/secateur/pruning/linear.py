"""Pruning one linear: its stored weight goes to the method, the result to the output checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import NumericsError, SecateurError
from secateur.methods.base import Method
from secateur.methods.magnitude import Magnitude
from secateur.models.skeleton import Skeleton
from secateur.models.structure import Linear
from secateur.pruning.plan import PruningPlan
from secateur.pruning.records import LinearRecord
from secateur.statistics import InputStatistics

FALLBACK = "too_few_tokens"
"""Note of a linear that saw fewer tokens than asked and was pruned by magnitude."""


@dataclass(frozen=True)
class PrunedLinear:
    """What became of one linear: its new weight ``[out, in]`` in the dtype it is stored in, and its record."""

    weight: Tensor
    record: LinearRecord


def prune_linear(skeleton: Skeleton, linear: Linear, plan: PruningPlan, stats: InputStatistics | None) -> PrunedLinear:
    """Prune ``linear`` as ``plan`` says. An expert with fewer tokens than ``plan.min_tokens`` is pruned by magnitude.

    Raises what the method raises, naming the linear, and ``NumericsError`` for a weight that is not finite.
    """
    started = time.perf_counter()
    key = skeleton.keys[f"{linear.name}.weight"]
    stored = skeleton.checkpoint.read(key)
    weight = linear.as_rows(stored).to(skeleton.device, torch.float32)
    sparsity = plan.sparsities[linear.name]
    found = InputStatistics() if stats is None else stats
    method, notes = _method_for(linear, plan, found)
    try:
        with torch.inference_mode():
            pruned = method.prune(weight, found, plan.pattern.at(sparsity), sparsity)
    except SecateurError as error:
        raise type(error)(f"{linear.name} (block {linear.block}): {error}") from error
    del weight
    result = pruned.weight.to(stored.dtype)
    _check_finite(result, linear)
    record = LinearRecord(
        name=linear.name,
        key=key,
        block=linear.block,
        outputs=linear.outputs,
        inputs=linear.inputs,
        sparsity=sparsity,
        pruned=pruned.mask.numel() - int(pruned.mask.count_nonzero()),
        zeros=result.numel() - int(result.count_nonzero()),
        tokens=found.tokens,
        seconds=time.perf_counter() - started,
        transposed=linear.transposed,
        notes={**pruned.notes, **notes},
    )
    return PrunedLinear(result, record)


def _method_for(linear: Linear, plan: PruningPlan, stats: InputStatistics) -> tuple[Method, dict[str, float]]:
    method = plan.method.for_linear(linear.name)
    if linear.experts is not None and method.statistics() and stats.tokens < plan.min_tokens:
        return Magnitude(), {FALLBACK: 1.0}
    return method, {}


def _check_finite(weight: Tensor, linear: Linear) -> None:
    if not bool(weight.isfinite().all()):
        raise NumericsError(
            f"Pruning {linear.name} (block {linear.block}) gave weights that are not finite; its stored weights may not "
            "be finite either, or its Gram matrix is too ill-conditioned: raise the damping, or use more calibration data."
        )
