"""The reference procedure as the papers' programs run it, written from the formulas: the whole model in memory, one
sample at a time, each block run twice (dense for the statistics, then pruned for the next block's inputs), one statistic
for each linear, Wanda by a full sort, SparseGPT by Cholesky, inverse, Cholesky and a loop over columns.

    python textbook.py REQUEST.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measuring import Phases, Request, Stopwatch, block_linears, report
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

BLOCK, DAMPING = 128, 0.01


class ColumnNorms:
    """Mean over samples of the squared norm of each input, ``[in]`` fp32."""

    def __init__(self, inputs: int) -> None:
        self.mean = torch.zeros(inputs)
        self.samples = 0

    def add(self, rows: Tensor) -> None:
        self.mean *= self.samples / (self.samples + 1)
        self.samples += 1
        self.mean += rows.float().norm(dim=0).square() / self.samples


class Hessian:
    """``2 / samples * sum over tokens of x x^T``, ``[in, in]`` fp32."""

    def __init__(self, inputs: int) -> None:
        self.mean = torch.zeros(inputs, inputs)
        self.samples = 0

    def add(self, rows: Tensor) -> None:
        self.mean *= self.samples / (self.samples + 1)
        self.samples += 1
        scaled = (2 / self.samples) ** 0.5 * rows.float().T
        self.mean += scaled @ scaled.T


def wanda(weight: Tensor, stats: ColumnNorms, sparsity: float, drop: int, group: int) -> Tensor:
    """``weight`` ``[out, in]`` fp32 without the lowest ``|W_ij| * sqrt(mean square of x_j)`` of each row, or without the
    ``drop`` lowest of each ``group``."""
    scores = weight.abs() * stats.mean.sqrt()
    pruned = torch.zeros_like(weight, dtype=torch.bool)
    if group:
        for column in range(0, weight.shape[1], group):
            lowest = scores[:, column : column + group].topk(drop, dim=1, largest=False).indices
            pruned.scatter_(1, column + lowest, True)
    else:
        order = scores.sort(dim=1, stable=True).indices
        pruned.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], True)
    return weight.masked_fill(pruned, 0)


def sparsegpt(weight: Tensor, stats: Hessian, sparsity: float, drop: int, group: int) -> Tensor:
    """``weight`` ``[out, in]`` fp32 pruned column by column, the columns to the right making up for the error."""
    hessian, weight = stats.mean, weight.clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        w, u = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        diagonal = u.diagonal()
        result, errors = torch.zeros_like(w), torch.zeros_like(w)
        pruned = torch.zeros_like(w, dtype=torch.bool)
        if not group:
            scores = w.square() / diagonal.square()
            pruned = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]
        for column in range(stop - start):
            if group and column % group == 0:
                ahead = slice(column, column + group)
                scores = w[:, ahead].square() / diagonal[ahead].square()
                pruned.scatter_(1, column + scores.topk(drop, dim=1, largest=False).indices, True)
            kept = w[:, column].masked_fill(pruned[:, column], 0)
            error = (w[:, column] - kept) / diagonal[column]
            w[:, column:] -= error.unsqueeze(1) @ u[column, column:].unsqueeze(0)
            result[:, column], errors[:, column] = kept, error
        weight[:, start:stop] = result
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight


METHODS: dict[str, tuple[type[Any], Callable[[Tensor, Any, float, int, int], Tensor]]] = {
    "wanda": (ColumnNorms, wanda),
    "sparsegpt": (Hessian, sparsegpt),
}


class _Caught(Exception):
    """Raised at the first block to end a forward of which no more is needed."""


def catch_inputs(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What enters the first block for each sample, and the arguments it is called with."""
    inputs: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0])
        arguments.append(kwargs)
        raise _Caught

    handle = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for sample in tokens:
        try:
            model(sample.unsqueeze(0), use_cache=False)
        except _Caught:
            continue
    handle.remove()
    return inputs, arguments


def first_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def prune(model: nn.Module, request: Request, phases: Phases) -> None:
    """Prune all linears of all blocks of ``model`` in place."""
    kind, method = METHODS[request.method]
    keep, _, group = request.pattern.partition(":")
    drop = int(group) - int(keep) if group else 0
    blocks = model.get_submodule("model.layers")
    assert isinstance(blocks, nn.ModuleList)
    with phases.phase("forward"):
        inputs, arguments = catch_inputs(model, blocks, request.tokens())
    for block in blocks:
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        stats = {linear: kind(linear.in_features) for linear in linears}

        def note(linear: nn.Module, args: tuple[Tensor, ...], stats: dict[nn.Linear, Any] = stats) -> None:
            assert isinstance(linear, nn.Linear)
            with phases.phase("statistics"):
                stats[linear].add(args[0].reshape(-1, linear.in_features))

        handles = [linear.register_forward_pre_hook(note) for linear in linears]
        with phases.phase("forward"):
            for hidden, kwargs in zip(inputs, arguments, strict=True):
                block(hidden, **kwargs)
        for handle in handles:
            handle.remove()
        with phases.phase("solve"):
            for linear in linears:
                pruned = method(linear.weight.float(), stats[linear], request.sparsity, drop, int(group or 0))
                linear.weight.data.copy_(pruned)
        with phases.phase("forward"):
            inputs = [first_output(block(hidden, **kwargs)) for hidden, kwargs in zip(inputs, arguments, strict=True)]


def main() -> None:
    request, phases = Request.read(), Phases()
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype="auto").eval()
    with Stopwatch(phases) as clock:
        prune(model, request, phases)
    weights = ((name, linear.weight.data) for name, linear in block_linears(model).items())
    report(request, clock, weights, dtype=str(model.dtype))


if __name__ == "__main__":
    main()
