"""What the benchmark prunes: random-weight Llamas, random tokens, and the FLOPs of pruning them at the least."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers.measuring import TOKENS
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama. Its linears' inputs and outputs all divide by 8, so masks pack into whole bytes."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linears of a block: q, k, v, o, gate, up, down."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = [(self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    def distinct_inputs(self) -> list[int]:
        """Widths of the different inputs of a block's linears: of q/k/v, o, gate/up, down."""
        return [self.hidden, self.hidden, self.hidden, self.intermediate]

    def forward_flops(self, tokens: int) -> int:
        """Of the products of all blocks' linears, once."""
        return self.blocks * sum(2 * inputs * outputs * tokens for inputs, outputs in self.linears())

    def gram_flops(self, tokens: int) -> int:
        """Of one Gram matrix for each distinct input, by symmetry half of the products, and one Cholesky of each."""
        return self.blocks * sum(n * (n + 1) * tokens + n**3 // 3 for n in self.distinct_inputs())


SHAPES = {
    "A": Shape(hidden=576, intermediate=1536, blocks=30, heads=9, kv_heads=3),
    "B": Shape(hidden=2048, intermediate=5632, blocks=4, heads=32, kv_heads=4),
    "tiny": Shape(hidden=64, intermediate=128, blocks=2, heads=4, kv_heads=2),
}


def write_model(shape: Shape, dtype: str, folder: Path) -> Path:
    """The shape's model with random weights (seed 0) in ``folder``, unless it is there already."""
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def write_tokens(samples: int, length: int, folder: Path) -> None:
    """``samples`` sequences of ``length`` random token ids (seed 0), as ``[samples, length]`` int64."""
    generator = torch.Generator().manual_seed(0)
    save_file({"tokens": torch.randint(VOCABULARY, (samples, length), generator=generator)}, folder / TOKENS)


@dataclass(frozen=True)
class Floor:
    """The least that pruning takes at the machine's own matrix rate: ``forward`` of the linears once and, for methods
    that use it, ``gram`` (with its Cholesky at the same rate). Seconds; ``rate`` in FLOP/s; ``flops`` of both."""

    forward: float
    gram: float
    rate: float
    flops: int

    @property
    def seconds(self) -> float:
        return self.forward + self.gram


def floor(shape: Shape, tokens: int, method: str, result: dict[str, Any], clock: str) -> Floor:
    """The floor by ``clock`` (wall or cpu) from the products that a Secateur run timed after pruning."""
    calls = tokens / result["product_rows"]
    products = result["products"]
    block = sum(products[f"{inputs}x{outputs}"][clock] for inputs, outputs in shape.linears())
    forward = shape.blocks * calls * block
    flops = shape.forward_flops(tokens)
    rate = flops / max(forward, 1e-9)
    extra = shape.gram_flops(tokens) if method == "sparsegpt" else 0
    return Floor(forward, extra / rate, rate, flops + extra)
