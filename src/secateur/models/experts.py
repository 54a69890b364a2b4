"""Mixture-of-experts: transformers keeps a block's experts in 3-D tensors; here each becomes linears of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models.stored import Place

TOLERANCE = 0.02
"""How far, relative to their norm, outputs may be from those of transformers' own loop: roundings of 16-bit types."""
_ATTRIBUTE = "_secateur_experts"


@dataclass(frozen=True)
class _Layout:
    """How a class of experts keeps its tensors. ``gated``: ``gate_up_proj`` ``[experts, 2 * width, hidden]``, else ``up_proj``
    without the gate; ``down_proj`` ``[experts, hidden, width]``. ``transposed``: the last two dimensions are the other way
    round. ``concatenated``: gate and up one after the other, else row by row. ``bias``: with biases ``*_bias``."""

    gated: bool = True
    bias: bool = False
    transposed: bool = False
    concatenated: bool = True
    normed: bool = False


class Experts:
    """The experts of one block as linears ``<e>.gate_proj``, ``<e>.up_proj`` and ``<e>.down_proj``: views of the 3-D
    tensors of ``module``, whose forward this takes over.

    ``module`` is of a class that transformers marks as experts (``use_experts_implementation``, which tells the layout),
    or of one in ``_OTHERS``. Every expert is called in every forward, with no tokens if it was chosen for none, so that
    linears are always called in the same order. The first forward is compared with transformers' own; ``ModelError`` if
    they differ.
    """

    def __init__(self, name: str, module: Any, layout: _Layout) -> None:
        self.name, self.module, self._layout = name, module, layout
        self.rows: Tensor | None = None
        """Of the flattened tokens, those that the expert now running was chosen for."""
        self.count = len(module.down_proj)
        self.places: dict[str, tuple[Place, Place | None]] = {}
        self.linears: dict[str, nn.Linear] = {}
        self._compared = False
        for expert in range(self.count):
            for kind in ("gate_proj", "up_proj", "down_proj") if layout.gated else ("up_proj", "down_proj"):
                self._add(expert, kind)
        self.bind()
        module.forward = self
        module.__dict__[_ATTRIBUTE] = self

    @property
    def transposed(self) -> bool:
        """Whether weights are ``[in, out]`` in the module's tensors."""
        return self._layout.transposed

    def _add(self, expert: int, kind: str) -> None:
        """Note where the weight and the bias of one linear lie, and make a module for them."""
        whole = "gate_up_proj" if self._layout.gated and kind != "down_proj" else kind
        outputs = slice(None)
        if whole == "gate_up_proj":
            width, last = self.module.gate_up_proj.shape[2 if self._layout.transposed else 1] // 2, kind == "up_proj"
            outputs = slice(int(last) * width, (1 + int(last)) * width)
            if not self._layout.concatenated:
                outputs = slice(int(last), None, 2)
        part = (expert, slice(None), outputs) if self._layout.transposed else (expert, outputs)
        bias = Place(f"{self.name}.{whole}_bias", (expert, outputs)) if self._layout.bias else None
        self.places[f"{expert}.{kind}"] = Place(f"{self.name}.{whole}", part), bias
        self.linears[f"{expert}.{kind}"] = nn.Linear(1, 1, bias=bias is not None, device="meta")

    def bind(self) -> None:
        """Make the linears' weights and biases views of the module's tensors, as they are now."""
        for name, linear in self.linears.items():
            weight, bias = self.places[name]
            view = self._view(weight)
            linear.weight = nn.Parameter(view.T if self._layout.transposed else view, requires_grad=False)
            linear.out_features, linear.in_features = linear.weight.shape
            if bias is not None:
                linear.bias = nn.Parameter(self._view(bias), requires_grad=False)

    def _view(self, place: Place) -> Tensor:
        return getattr(self.module, place.parameter.rpartition(".")[2]).detach()[place.part]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states, top_k_index, top_k_weights = self.arguments(args, kwargs)
        output = torch.zeros_like(hidden_states)
        for expert in range(self.count):
            tokens, choice = (top_k_index == expert).nonzero(as_tuple=True)
            results = self.run(expert, hidden_states[tokens], tokens) * top_k_weights[tokens, choice, None]
            output.index_add_(0, tokens, results.to(output.dtype))
        self._compare(output, args, kwargs)
        return output

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """What the module is called with: hidden states ``[tokens, hidden]``, the experts chosen for each, and their weights,
        both ``[tokens, chosen]``. Classes name them differently, but all have them first."""
        bound = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs)
        return list(bound.arguments.values())[1:4]

    def run(self, expert: int, inputs: Tensor, tokens: Tensor | None) -> Tensor:
        """The outputs of one expert for ``inputs`` ``[chosen tokens, hidden]``, which are the hidden states of ``tokens``."""
        # Noted before each linear: in lockstep another batch may have run in between (pruning.lockstep).
        if self._layout.gated:
            self.rows = tokens
            gate = self.linears[f"{expert}.gate_proj"](inputs)
            self.rows = tokens
            up = self.linears[f"{expert}.up_proj"](inputs)
            inner = self._gated(gate, up)
        else:
            self.rows = tokens
            inner = self.module.act_fn(self.linears[f"{expert}.up_proj"](inputs))
        self.rows = tokens
        output = self.linears[f"{expert}.down_proj"](inner)
        return self.module.post_expert_norm(output) if self._layout.normed else output

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if not hasattr(self.module, "_apply_gate"):
            return self.module.act_fn(gate) * up
        # The module's own activation expects them in one.
        together = [gate, up]
        fused = torch.cat(together, dim=-1) if self._layout.concatenated else torch.stack(together, dim=-1).flatten(-2)
        return self.module._apply_gate(fused)

    def _compare(self, output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise ``ModelError`` unless transformers' own loop over the experts gives the same ``output``."""
        if self._compared or output.is_meta:
            return
        self._compared = True
        with _one_by_one(self.module):
            expected = type(self.module).forward(self.module, *args, **kwargs)
        apart, norm = (output.float() - expected.float()).norm(), expected.float().norm()
        if bool(apart > TOLERANCE * norm):
            raise ModelError(
                f"The experts of {self.name} ({type(self.module).__name__}) compute something else than Secateur knows of: "
                f"run one by one, their outputs differ by {float(apart / norm):.0%}. Secateur cannot prune them; leave "
                f"them dense with pruning.skip '*.experts.*'."
            )


class ExpertsOfAll(Experts):
    """Llama 4's: every expert is handed all tokens, those that it was not chosen for as zeros."""

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        return [super().arguments(args, kwargs)[0].view(self.count, -1, self.module.hidden_size)[0], None, None]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states = super().arguments(args, kwargs)[0]
        by_expert = hidden_states.view(self.count, -1, hidden_states.shape[-1])
        output = torch.zeros_like(by_expert)
        for expert, inputs in enumerate(by_expert):
            tokens = inputs.any(dim=-1).nonzero(as_tuple=True)[0]
            output[expert, tokens] = self.run(expert, inputs[tokens], tokens)
        output = output.view_as(hidden_states)
        self._compare(output, args, kwargs)
        return output


class ExpertsAndIdentity(Experts):
    """LongCat's: a number past the last expert chooses one that hands its input on."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states, top_k_index, top_k_weights = self.arguments(args, kwargs)
        identity = (top_k_weights * (top_k_index >= self.count)).sum(dim=-1, keepdim=True) * hidden_states
        self._compared, compared = True, self._compared
        output = super().__call__(*args, **kwargs) + identity.to(hidden_states.dtype)
        self._compared = compared
        self._compare(output, args, kwargs)
        return output


_OTHERS = {
    "Llama4TextExperts": (ExpertsOfAll, _Layout(transposed=True)),
    "LongcatFlashExperts": (ExpertsAndIdentity, _Layout()),
}
"""Classes that transformers does not mark as experts, by name."""


def take_over_experts(model: nn.Module) -> None:
    """Let linears of their own compute what the fused experts of a model on the meta device do."""
    for name, module in model.named_modules():
        kind, layout = _OTHERS.get(type(module).__name__, (Experts, _marked_layout(module)))
        if layout is not None:
            kind(name, module, layout)


def experts_at(module: nn.Module) -> list[Experts]:
    """The experts that took over the module itself: one or none."""
    return [module.__dict__[_ATTRIBUTE]] if _ATTRIBUTE in module.__dict__ else []


def _marked_layout(module: Any) -> _Layout | None:
    """The layout of a module that transformers marks as experts; ``None`` for others."""
    flags = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
    if not hasattr(module, "_apply_gate") or not all(hasattr(module, flag) for flag in flags):
        return None
    layout = _Layout(*(getattr(module, flag) for flag in flags))
    weights = ("gate_up_proj" if layout.gated else "up_proj", "down_proj")
    return layout if all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in weights) else None


@contextmanager
def _one_by_one(module: Any) -> Iterator[None]:
    """Let transformers compute the experts in its plain loop, which it has under no name where nothing else is there."""
    config = getattr(module, "config", None)
    former = getattr(config, "_experts_implementation", None)
    if config is None or former is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = former
