"""Mixture-of-experts: transformers keeps a block's experts in two 3-D tensors; here each becomes a linear of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from secateur.errors import ModelError


class Experts(nn.Module):
    """The experts of one block as linears ``<e>.gate_proj``, ``<e>.up_proj`` and ``<e>.down_proj``, on the meta device.

    Stands in for a transformers module with ``gate_up_proj`` ``[experts, 2 * width, hidden]`` and ``down_proj``
    ``[experts, hidden, width]``, and computes the same. Every expert is called in every forward, with no tokens if it
    was chosen for none, so that linears are always called in the same order.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        count, hidden, width = fused.down_proj.shape
        self.__dict__["_fused"] = fused  # for its activation; not a child, so its tensors are not looked for
        self.rows: Tensor | None = None
        """Of the flattened tokens, those that the expert now running was chosen for."""
        with init_empty_weights():
            for expert in range(count):
                self.add_module(str(expert), _Expert(hidden, width))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        output = torch.zeros_like(hidden_states)
        for number, expert in self.named_children():
            assert isinstance(expert, _Expert)
            tokens, choice = (top_k_index == int(number)).nonzero(as_tuple=True)
            inputs = hidden_states[tokens]
            # Noted before each linear: in lockstep another batch may have run in between (pruning.lockstep).
            self.rows = tokens
            gate = expert.gate_proj(inputs)
            self.rows = tokens
            up = expert.up_proj(inputs)
            gated = self.__dict__["_fused"]._apply_gate(torch.cat([gate, up], dim=-1))
            self.rows = tokens
            results = expert.down_proj(gated) * top_k_weights[tokens, choice, None]
            output.index_add_(0, tokens, results.to(output.dtype))
        return output


class _Expert(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)


def split_experts(model: nn.Module) -> None:
    """Replace the fused experts of all blocks of a model on the meta device by ``Experts``.

    Raises ``ModelError`` for experts that are stored in a way this does not know.
    """
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] != "experts":
            continue
        if not _is_known(module):
            raise ModelError(
                f"{type(model).__name__} is a mixture-of-experts model whose experts ({name}, {type(module).__name__}) are "
                "not stored as gate_up_proj and down_proj without biases, the way Mixtral's and Qwen3-MoE's are; this "
                "version cannot prune it. Use another model."
            )
        parent = model.get_submodule(name.rpartition(".")[0])
        dtype = next(module.parameters()).dtype
        parent.experts = Experts(module).to(dtype)


def _is_known(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters())
    if parameters.keys() != {"gate_up_proj", "down_proj"} or not hasattr(module, "_apply_gate"):
        return False
    count, hidden, width = parameters["down_proj"].shape
    odd = ("is_transposed", "has_bias", "has_post_expert_norm")
    return (
        tuple(parameters["gate_up_proj"].shape) == (count, 2 * width, hidden)
        and getattr(module, "is_concatenated", False)
        and not any(getattr(module, flag, False) for flag in odd)
    )


def stored_names(name: str) -> Iterator[str]:
    """Names under which checkpoints store the parameter ``name`` of a mixture-of-experts block."""
    yield name
    mixtral = name.replace(".mlp.", ".block_sparse_moe.")
    if ".experts." in name:
        for ours, theirs in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            mixtral = mixtral.replace(f".{ours}.", f".{theirs}.")
    if mixtral != name:
        yield mixtral
