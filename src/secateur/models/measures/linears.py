"""The linears of a whole model's blocks, and what passes through them in a batch."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.models.batches import Batch
from secateur.models.structure import Linear, find_blocks, find_linears


def block_linears(model: nn.Module) -> list[Linear]:
    """The linears of all blocks, in order. Experts that transformers keeps in one tensor are none."""
    name, blocks = find_blocks(model)
    return [linear for index, block in enumerate(blocks) for linear in find_linears(block, f"{name}.{index}", index)]


def by_sample(tensor: Tensor, batch: Batch) -> Tensor | None:
    """``[batch, length, width]``, also where the model flattens its tokens; ``None`` where not every token has a row."""
    rows, length = batch.ids.shape
    if tensor.shape[:-1].numel() != rows * length:
        return None
    return tensor.reshape(rows, length, tensor.shape[-1])
