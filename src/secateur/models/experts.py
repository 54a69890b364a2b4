"""Mixture-of-experts: transformers keeps a block's experts in 3-D tensors; here each becomes linears of its own."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models.stored import Place

TOLERANCE = 0.02
"""How far, relative to their norm, outputs may be from those of transformers' own loop: roundings of 16-bit types."""
_ATTRIBUTE = "_secateur_experts"


class Experts:
    """The experts of one block as linears ``<e>.gate_proj``, ``<e>.up_proj`` and ``<e>.down_proj``: views of the 3-D
    tensors of ``module``, whose forward this takes over.

    ``module`` is of a class that transformers marks as experts (``use_experts_implementation``): ``gate_up_proj``
    ``[experts, 2 * width, hidden]`` (or ``up_proj``, without a gate) and ``down_proj`` ``[experts, hidden, width]``, or
    each transposed; gate and up one after the other or interleaved; with or without biases. Every expert is called in
    every forward, with no tokens if it was chosen for none, so that linears are always called in the same order. The
    first forward is compared with transformers' own; ``ModelError`` if they differ.
    """

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module = name, module
        self.rows: Tensor | None = None
        """Of the flattened tokens, those that the expert now running was chosen for."""
        self.count = len(module.down_proj)
        self.places: dict[str, tuple[Place, Place | None]] = {}
        self.linears: dict[str, nn.Linear] = {}
        self._compared = False
        for expert in range(self.count):
            for kind in ("gate_proj", "up_proj", "down_proj") if module.has_gate else ("up_proj", "down_proj"):
                self._add(expert, kind)
        self.bind()
        module.forward = self
        module.__dict__[_ATTRIBUTE] = self

    def _add(self, expert: int, kind: str) -> None:
        """Note where the weight and the bias of one linear lie, and make a module for them."""
        whole = "gate_up_proj" if self.module.has_gate and kind != "down_proj" else kind
        outputs = slice(None)
        if whole == "gate_up_proj":
            width, last = self.module.gate_up_proj.shape[2 if self.module.is_transposed else 1] // 2, kind == "up_proj"
            outputs = slice(int(last) * width, (1 + int(last)) * width)
            if not self.module.is_concatenated:
                outputs = slice(int(last), None, 2)
        part = (expert, slice(None), outputs) if self.module.is_transposed else (expert, outputs)
        bias = Place(f"{self.name}.{whole}_bias", (expert, outputs)) if self.module.has_bias else None
        self.places[f"{expert}.{kind}"] = Place(f"{self.name}.{whole}", part), bias
        self.linears[f"{expert}.{kind}"] = nn.Linear(1, 1, bias=bias is not None, device="meta")

    def bind(self) -> None:
        """Make the linears' weights and biases views of the module's tensors, as they are now."""
        for name, linear in self.linears.items():
            weight, bias = self.places[name]
            view = self._view(weight)
            linear.weight = nn.Parameter(view.T if self.module.is_transposed else view, requires_grad=False)
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
        if not self._compared:
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
        if self.module.has_gate:
            self.rows = tokens
            gate = self.linears[f"{expert}.gate_proj"](inputs)
            self.rows = tokens
            up = self.linears[f"{expert}.up_proj"](inputs)
            inner = self.module._apply_gate(self._fused(gate, up))
        else:
            self.rows = tokens
            inner = self.module.act_fn(self.linears[f"{expert}.up_proj"](inputs))
        self.rows = tokens
        output = self.linears[f"{expert}.down_proj"](inner)
        return self.module.post_expert_norm(output) if self.module.has_post_expert_norm else output

    def _fused(self, gate: Tensor, up: Tensor) -> Tensor:
        """Gate and up as the module's own activation expects them."""
        if self.module.is_concatenated:
            return torch.cat([gate, up], dim=-1)
        return torch.stack([gate, up], dim=-1).flatten(-2)

    def _compare(self, output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise ``ModelError`` unless transformers' own loop over the experts gives the same ``output``."""
        self._compared = True
        config = self.module.config
        former, config._experts_implementation = config._experts_implementation, "eager"
        try:
            expected = type(self.module).forward(self.module, *args, **kwargs)
        finally:
            config._experts_implementation = former
        apart, norm = (output.float() - expected.float()).norm(), expected.float().norm()
        if bool(apart > TOLERANCE * norm):
            raise ModelError(
                f"The experts of {self.name} ({type(self.module).__name__}) compute something else than Secateur knows of: "
                f"run one by one, their outputs differ by {float(apart / norm):.0%}. Secateur cannot prune them; leave "
                f"them dense with pruning.skip '*.experts.*'."
            )


def take_over_experts(model: nn.Module) -> list[Experts]:
    """Let the linears of ``Experts`` compute what the fused experts of a model on the meta device do."""
    return [Experts(name, module) for name, module in model.named_modules() if _is_known(module)]


def experts_at(module: nn.Module) -> list[Experts]:
    """The experts that took over the module itself: one or none."""
    return [module.__dict__[_ATTRIBUTE]] if _ATTRIBUTE in module.__dict__ else []


def _is_known(module: Any) -> bool:
    flags = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm", "_apply_gate")
    if not all(hasattr(module, flag) for flag in flags):
        return False
    weights = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in weights)
