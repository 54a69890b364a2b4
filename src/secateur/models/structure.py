"""Finding a model's decoder blocks and their linears by structure, not by name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.errors import ModelError
from secateur.models.experts import Experts, experts_at
from secateur.models.stored import Place

FEWER_OUTPUTS = 16
"""A linear with as many outputs as the model has heads, and so many times as many inputs, gives a number for each head."""


@dataclass(frozen=True)
class Linear:
    """A linear of a block. ``weight``, ``bias``: where they lie in the model's parameters. ``transposed``: the weight is
    ``[in, out]`` there (GPT-2's Conv1D, some experts). ``experts``: the mixture of experts it is part of.
    ``steers``: its outputs choose or weigh, one for each expert, head or stream, and are no features: it stays dense
    unless asked (docs/decisions/0016)."""

    name: str
    block: int
    module: nn.Module
    weight: Place
    bias: Place | None = None
    transposed: bool = False
    experts: Experts | None = None
    steers: bool = False

    @property
    def rows(self) -> Tensor:
        """The weight ``[out, in]`` that the module computes with, on the meta device unless its block is loaded."""
        weight = _weight(self.module)
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def inputs(self) -> int:
        return self.rows.shape[1]

    @property
    def outputs(self) -> int:
        return self.rows.shape[0]

    def as_rows(self, stored: Tensor) -> Tensor:
        """A weight as it lies in its place to ``[out, in]``, or back."""
        return stored.T if self.transposed else stored

    def rows_of(self, token_mask: Tensor | None) -> Tensor | None:
        """The part of a batch's token mask or weights that belongs to what the linear is called with: all, or an expert's
        tokens."""
        if token_mask is None or self.experts is None or self.experts.rows is None:
            return token_mask
        return token_mask.reshape(-1).to(self.experts.rows.device)[self.experts.rows]


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder blocks: the ``ModuleList`` with most weights in linears, of those that belong
    to the language model and not to what sees or hears for it.

    Raises ``ModelError`` when there is none.
    """
    others = tuple(f"{name}." for name in _other_models(model))
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(others):
            weights = sum(_weight(linear).numel() for linear in module.modules() if is_linear(linear))
            if weights and (best is None or weights > best[0]):
                best = (weights, name, module)
    if best is None:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder blocks with linears in it; Secateur prunes "
            "decoder-only causal language models."
        )
    return best[1], best[2]


def _other_models(model: nn.Module) -> list[str]:
    """Names of the models inside a wrapper that are no language models: their configuration is of another class."""
    config = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or config is None:
        return []
    own = {type(config), type(config.get_text_config())}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and type(module.config) not in own
    ]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix that all its inputs meet; DeepSeek-V4's of several groups is not."""
    return isinstance(module, (nn.Linear, Conv1D)) and getattr(module, "n_groups", 1) == 1


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear.weight, Tensor)
    return linear.weight


STEERING = re.compile(r"(^|\.)(\w*router\w*|gate|altup|\w*hyper_connection|weights_proj)(\.|$)")
"""Names of modules whose linears steer: routers, AltUp and hyper connections, indexers' scorers."""


def find_linears(block: nn.Module, prefix: str, index: int, heads: Collection[int] = ()) -> list[Linear]:
    """The linears of a block, those of experts after the module that holds them; gates with a single output are no
    matrices. ``heads``: numbers of heads that the model has, of whatever kind."""
    linears = []
    for name, module in block.named_modules():
        if is_linear(module):
            linear = linear_at(f"{prefix}.{name}", index, module)
            few = linear.outputs in heads and linear.outputs * FEWER_OUTPUTS <= linear.inputs
            linears.append(replace(linear, steers=few or bool(STEERING.search(name))))
        for experts in experts_at(module):
            for kind, part in experts.linears.items():
                weight, bias = experts.places[kind]
                transposed = experts.transposed
                linears.append(Linear(f"{prefix}.{name}.{kind}", index, part, weight, bias, transposed, experts))
    return [linear for linear in linears if linear.outputs > 1]


def linear_at(name: str, block: int, module: nn.Module) -> Linear:
    """The linear that is the module of this name."""
    bias = Place(f"{name}.bias") if getattr(module, "bias", None) is not None else None
    return Linear(name, block, module, Place(f"{name}.weight"), bias, isinstance(module, Conv1D))


def refuse_unsupported(model: nn.Module) -> None:
    """Raise ``ModelError`` for encoder-decoder models."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} is an encoder-decoder model; Secateur prunes decoder-only models.")


def inputs_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a linear is called with."""
    return args[0] if args else kwargs["input"]
