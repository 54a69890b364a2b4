"""What cannot be read from a type's configuration class, type by type, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hint:
    """``base``: what the default configuration is made with; ``scale``: fields of ``Scale``, in every attempt; ``final``:
    what is set in the small configuration, by dotted path."""

    reason: str
    base: dict[str, Any] = field(default_factory=dict)
    scale: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)


_NO_DEFAULT_KINDS = "by default all blocks are alike, which those of real checkpoints are not"
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}

HINTS: dict[str, Hint] = {
    "bamba": Hint(_NO_DEFAULT_KINDS, base={"attn_layer_indices": [1]}),
    "cohere_compass_text": Hint(
        "the model wants rotary settings by kind of block, which the default configuration does not have",
        base={"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    ),
    "dbrx": Hint(
        "the default attention configuration lacks the rope_theta and the clip_qkv that the model reads",
        final={"attn_config.rope_theta": 10_000.0, "attn_config.clip_qkv": 8.0},
    ),
    "gemma4_assistant": Hint(
        "the default text configuration is one that the assistant's own check refuses",
        base={
            "text_config": {
                "model_type": "gemma4_text",
                "hidden_size_per_layer_input": 0,
                "vocab_size_per_layer_input": 0,
            }
        },
    ),
    "gpt_neo": Hint(
        "what each block is follows from a list of lists",
        base={"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    ),
    "granitemoehybrid": Hint(
        _NO_DEFAULT_KINDS,
        base={"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    ),
    "lfm2": Hint(
        _NO_DEFAULT_KINDS,
        base={"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    ),
    "lfm2_moe": Hint(
        "the kinds of blocks have no default",
        base={"layer_types": ["conv", "conv", "full_attention", "conv"], "num_hidden_layers": 4},
    ),
    "qwen4_exp": Hint(
        "the sizes of the indexer have no default",
        final={f"text_config.{name}": size for name, size in _INDEXER.items()},
    ),
    "qwen4_exp_text": Hint("the sizes of the indexer have no default", final=_INDEXER),
    "reformer": Hint(
        "positions are a grid whose two widths add up to the hidden size",
        final={"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 48)},
    ),
    "xmod": Hint("the model refuses to run without a language", final={"default_language": "en_XX"}),
    "zamba2": Hint("blocks share their attention, which shows only where two have it", scale={"alike": 2}),
}

BY_NATURE: dict[str, str] = {
    "gemma4_assistant": "it drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "it drafts for another model, whose keys and values it reads",
    "musicgen": "it reads codes of sound, and transformers builds no causal LM from its configuration",
    "musicgen_melody": "it reads codes of sound, and transformers builds no causal LM from its configuration",
}
"""Types that are no language models by themselves, and why: that they are not built or are refused is right."""
