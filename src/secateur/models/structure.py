"""Finding a model's decoder blocks and their linears by structure, not by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.errors import ModelError


@dataclass(frozen=True)
class Linear:
    """A linear of a block. ``transposed``: its weight is stored ``[in, out]`` (GPT-2's Conv1D)."""

    name: str
    block: int
    module: nn.Module
    transposed: bool

    @property
    def inputs(self) -> int:
        return _weight(self.module).shape[0 if self.transposed else 1]

    @property
    def outputs(self) -> int:
        return _weight(self.module).shape[1 if self.transposed else 0]

    def as_rows(self, stored: Tensor) -> Tensor:
        """A weight as stored to ``[out, in]``, or back."""
        return stored.T if self.transposed else stored


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder blocks: the ``ModuleList`` with most weights in linears.

    Raises ``ModelError`` when there is none.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            weights = sum(_weight(linear).numel() for linear in module.modules() if is_linear(linear))
            if weights and (best is None or weights > best[0]):
                best = (weights, name, module)
    if best is None:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder blocks with linear layers in it; Secateur prunes "
            "decoder-only causal language models."
        )
    return best[1], best[2]


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear.weight, Tensor)
    return linear.weight


def find_linears(block: nn.Module, prefix: str, index: int) -> list[Linear]:
    """The linears of a block, in the order the module declares them."""
    return [
        Linear(f"{prefix}.{name}", index, module, isinstance(module, Conv1D))
        for name, module in block.named_modules()
        if is_linear(module)
    ]


def refuse_unsupported(model: nn.Module, blocks: nn.ModuleList) -> None:
    """Raise ``ModelError`` for encoder-decoder and mixture-of-experts models."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} is an encoder-decoder model; Secateur prunes decoder-only models.")
    for name, _ in blocks.named_modules():
        if name.rpartition(".")[2] == "experts":
            raise ModelError(
                f"{type(model).__name__} is a mixture-of-experts model (block module {name!r} holds experts), which "
                "this version cannot prune: its statistics would have to be kept per expert. Use a dense model."
            )
