"""Where the loss of a sequence would pull a model, in a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.errors import NumericsError
from secateur.models.batches import Batch, make_batches
from secateur.models.forward import default_batch
from secateur.models.measures.linears import block_linears, by_sample
from secateur.models.measures.projection import project, stream_seed
from secateur.models.structure import Linear, inputs_of

RANK = 8
BETAS, EPSILON = (0.9, 0.999), 1e-8
MOMENT_SAMPLES = 64
HELD_BYTES = 2**28
"""Gradients wait for their projection up to this size, since the random matrix is drawn anew for each lot."""

Gradients = dict[str, Tensor]
"""By linear name, ``[sequences, outputs * RANK]`` fp32."""


def adapter_gradients(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], dimensions: int, seed: int, adam: bool
) -> np.ndarray:
    """``[sequences, dimensions]`` fp32: the gradient of each sequence's mean token loss in low-rank adapters, projected.

    A linear ``W x`` with an adapter is ``W x + B A x``, ``A`` ``[8, in]`` random and fixed by ``seed``, ``B`` ``[out, 8]``
    zero, where LoRA training starts; there ``dL/dA = 0`` and, with ``g = dL/d(output)``, ``dL/dB = sum over tokens of
    g (A x)^T``, so no adapter is put in and the weights need no gradient. With ``adam``, instead of ``g`` now the entry of
    ``dL/dB``, ``(b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g² + eps)``, without bias correction; ``m`` and ``v`` are the
    means of ``g`` and ``g²`` over at most 64 of the sequences, evenly spread, where Adam's moments would settle if the
    weights stood still. The model is left as it was.
    Cost: one forward and one backward a sequence, with ``adam`` up to 64 more; projection O(dimensions · 8 · outputs).
    Raises ``NumericsError`` when the loss or a gradient is not finite.
    Source: LESS, Xia et al. 2024, arXiv 2402.04333; LoRA, Hu et al. 2021, arXiv 2106.09685.
    """
    adapters = _Adapters(model, seed)
    held = max(1, HELD_BYTES // (4 * RANK * sum(linear.outputs for linear in adapters.linears)))
    moments = _moments(adapters, sequences, held) if adam else {}
    found = []
    for start in range(0, len(sequences), held):
        lot = sequences[start : start + held]
        features = torch.zeros(len(lot), dimensions, device=model.device)
        for name, gradients in adapters.gradients(lot).items():
            step = _step(gradients, *moments[name]) if adam else gradients
            features += project(step.to(features.device), dimensions, seed, name)
        found.append(features.cpu())
    return torch.cat(found).numpy()


def _moments(adapters: _Adapters, sequences: Sequence[Sequence[int]], held: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The means of ``g`` and of ``g²`` by linear."""
    count = min(MOMENT_SAMPLES, len(sequences))
    spread = [sequences[index * len(sequences) // count] for index in range(count)]
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    for start in range(0, count, held):
        for name, found in adapters.gradients(spread[start : start + held]).items():
            first, second = moments.setdefault(name, (torch.zeros_like(found[0]), torch.zeros_like(found[0])))
            first += found.sum(dim=0) / count
            second += found.square().sum(dim=0) / count
    return moments


def _step(gradients: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The direction of Adam's step along each gradient; ``first`` and ``second`` are the moments before it."""
    one, two = BETAS
    return (one * first + (1 - one) * gradients) / (two * second + (1 - two) * gradients.square() + EPSILON).sqrt()


class _Adapters:
    """The adapters' gradients, taken by hooks on the linears of a model."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        self.model, self.linears = model, block_linears(model)
        self._down = {linear.name: adapter_start(linear, seed) for linear in self.linears}

    def gradients(self, sequences: Sequence[Sequence[int]]) -> Gradients:
        """``dL/dB`` of each sequence, in order."""
        # Beside the logits, a backward holds their softmax and their gradient.
        size = max(1, default_batch(self.model, sequences) // 4)
        found: dict[str, list[Tensor]] = {}
        with _frozen(self.model):
            for batch in make_batches(sequences, size):
                for name, rows in self._backward(batch).items():
                    found.setdefault(name, []).append(rows)
        return {linear.name: torch.cat(found[linear.name]) for linear in self.linears if linear.name in found}

    def _backward(self, batch: Batch) -> Gradients:
        """One forward and backward; the sum of the sequences' losses has the gradients of each in its rows."""
        tokens = batch.token_mask[:, 1:].sum(dim=1).clamp(min=1)
        found: Gradients = {}
        entered: list[Tensor] = []
        with ExitStack() as hooks:
            for linear in self.linears:
                hook = linear.module.register_forward_hook(self._hook(linear, batch, found), with_kwargs=True)
                hooks.callback(hook.remove)
            hooks.callback(self.model.get_input_embeddings().register_forward_hook(_start(entered)).remove)
            loss = _summed_loss(self.model, batch)
            torch.autograd.grad(loss, entered)
        for name, rows in found.items():
            rows /= tokens.to(rows.device)[:, None]
            if not bool(rows.isfinite().all()):
                raise NumericsError(
                    f"The gradients at {name} are not finite on this text. Compute in a wider type (--set dtype=float32), and "
                    "check the model's weights."
                )
        return found

    def _hook(self, linear: Linear, batch: Batch, found: Gradients) -> Callable[..., None]:
        down = self._down[linear.name]

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            inputs = by_sample(inputs_of(args, kwargs), batch)
            if inputs is None:
                return
            low = inputs.detach().float() @ down.to(inputs.device).T

            def take(gradient: Tensor) -> None:
                rows = by_sample(gradient, batch)
                assert rows is not None
                found[linear.name] = torch.einsum("nto,ntr->nor", rows.float(), low).flatten(1)

            output.register_hook(take)

        return after


def adapter_start(linear: Linear, seed: int) -> Tensor:
    """The adapter's ``A`` ``[RANK, inputs]``: uniform within ``1/sqrt(inputs)``, as LoRA starts."""
    generator = torch.Generator().manual_seed(stream_seed(seed, linear.name, "A"))
    return (torch.rand(RANK, linear.inputs, generator=generator) * 2 - 1) / linear.inputs**0.5


def _start(entered: list[Tensor]) -> Callable[..., Tensor]:
    """A hook on the embeddings that makes the backward reach all blocks, though no weight asks for a gradient."""

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        entered.append(output.detach().requires_grad_())
        return entered[-1]

    return after


def _summed_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits = model(**batch.model_inputs(model.device), use_cache=False).logits[:, :-1].float()
    targets = batch.ids[:, 1:].to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    loss = losses.view_as(targets)[batch.token_mask[:, 1:].to(logits.device)].sum()
    if not bool(loss.isfinite()):
        raise NumericsError(
            f"The outputs of {type(model).__name__} are not finite on this text: NaN or infinity among its logits. "
            "Compute in a wider type, and check the model's weights."
        )
    return loss


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Gradients flow, but no weight takes one; afterwards all is as before."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
