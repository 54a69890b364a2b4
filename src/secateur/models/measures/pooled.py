"""What a sequence does inside a model, in a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.errors import NumericsError
from secateur.models.batches import Batch, make_batches
from secateur.models.forward import default_batch
from secateur.models.measures.linears import block_linears, by_sample
from secateur.models.measures.projection import project
from secateur.models.structure import Linear, inputs_of


def pooled_inputs(model: PreTrainedModel, sequences: Sequence[Sequence[int]], dimensions: int, seed: int) -> np.ndarray:
    """``[sequences, dimensions]`` fp32: the mean inputs of every block's linears, each of unit length, concatenated and
    randomly projected.

    Padding is left out; linears that share their input (q/k/v, gate/up) count once. A linear that sees only some of the
    tokens (an expert) does not count. Raises ``NumericsError`` naming the linear when its inputs are not finite.
    Cost: one forward without the output head a sequence.
    """
    linears = block_linears(model)
    found = []
    for batch in make_batches(sequences, default_batch(model, sequences)):
        pool = _Pool(batch, torch.zeros(len(batch.ids), dimensions, device=model.device), seed)
        with pool.watching(linears), torch.inference_mode():
            model.base_model(**batch.model_inputs(model.device), use_cache=False)
        found.append(pool.features.cpu())
    return torch.cat(found).numpy()


class _Pool:
    """Hooks that add each linear's part to the ``features`` of one batch."""

    def __init__(self, batch: Batch, features: Tensor, seed: int) -> None:
        self.batch, self.features, self.seed = batch, features, seed
        self._last: Tensor | None = None

    @contextmanager
    def watching(self, linears: Sequence[Linear]) -> Iterator[None]:
        handles = [linear.module.register_forward_pre_hook(self._hook(linear), with_kwargs=True) for linear in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, linear: Linear) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = inputs_of(args, kwargs)
            rows = by_sample(inputs, self.batch)
            if inputs is not self._last and rows is not None:
                self._take(linear, rows)
            self._last = inputs

        return before

    def _take(self, linear: Linear, rows: Tensor) -> None:
        mask = self.batch.token_mask.to(rows.device)
        means = torch.stack([row[counted].float().mean(dim=0) for row, counted in zip(rows, mask, strict=True)])
        if not bool(means.isfinite().all()):
            raise NumericsError(
                f"The inputs of {linear.name} are not finite on this text: NaN or infinity among them. "
                "Compute in a wider type, and check the model's weights."
            )
        unit = torch.nn.functional.normalize(means, dim=1).to(self.features.device)
        self.features += project(unit, self.features.shape[1], self.seed, linear.name)
