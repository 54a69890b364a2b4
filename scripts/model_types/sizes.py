"""How large a field of a configuration is in a tiny model, by what its name says it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

SPECIAL_TOKENS = 32
"""Token ids below this are special to some model (images, padding, ...); calibration data has only others."""


@dataclass(frozen=True)
class Scale:
    """How small, and which fields are given. ``alike``: blocks of every kind.

    ``unset``: what becomes of sizes that a class declares as ``None``: ``left`` to it, ``given`` where it then works them
    out, or ``filled`` everywhere.
    """

    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head: int = 16
    intermediate: int = 160
    expert_width: int = 48
    experts: int = 8
    state: int = 16
    rank: int = 32
    window: int = 16
    blocks: int = 2
    alike: int = 1
    unset: str = "left"

    @property
    def vocabulary(self) -> int:
        return 320

    @property
    def positions(self) -> int:
        return 128


FIRST = Scale()
_SHAPES = (
    FIRST,
    replace(FIRST, kv_heads=FIRST.heads),
    replace(FIRST, alike=2),
    replace(FIRST, head=32),
    replace(FIRST, hidden=128, head=32, state=32),
)
SCALES = tuple(replace(shape, unset=unset) for unset in ("left", "given", "filled") for shape in _SHAPES)

SIZES: tuple[tuple[str | int, str], ...] = (
    # No sizes, although the names look like some.
    ("keep", "^chunk_size_feed_forward$ ^chunk_size_lm_head$ ^pretraining_tp$ ^seed$ type_vocab_size$ ^lang_id$"),
    ("keep", "_token_(id|index)$ ^(mask|unk|pad|bos|eos)_index$ ^conf_attention ^hc_sinkhorn_iters$"),
    ("hidden", "(conv_channels|out_channel|output_channels)$"),
    ("keep", "^(num_|in_|out_|image_)?channels$ kernel stride ^conv1d_width$ ^conv_L_cache$"),
    # Vocabularies and positions.
    (256, "^codebook_size$"),  # a power of two
    ("vocabulary", "vocab ^num_centroids$"),
    ("positions", "position_embeddings$ ^n_positions$ ^n_ctx$ ^max_seq_len$ ^max_(target|source)_positions$"),
    ("positions", "^context_length$ ^model_max_length$ max_distance$ ^rel_extent$ ^floor_scale$"),
    # How many of what.
    ("kv_heads", "num_key_value_heads$ ^num_kv_heads$ ^kv_n_heads$ ^num_query_groups$"),
    ("heads", "attention_heads$ ^(n|num)_heads?$ ^linear_num_(key_|value_)?heads$ ^index_n_heads$"),
    ("heads", "^(n_mamba_heads|mamba_n_heads|mamba_num_heads)$"),
    ("experts", "^(moe_num|num_local|n_routed|num)_experts$ ^zero_expert_num$"),
    (2, "experts_per_tok(en)?$ ^moe_top_?k$ ^moe_k$ ^n_group$ ^num_expert_group$"),
    (2, "^(mamba_)?n_?groups$ ^o_groups$ ^index_topk_blocks$"),
    (1, "^topk_group$ ^(num|n)_shared_experts$ ^moe_num_shared_experts$"),
    # Dimensions.
    ("head", "^(attention_)?head_(dim|size)$ ^(swa|index|qk_nope|qk_rope|v)_head_dim$ ^attention_head_size$ ^d_head$"),
    ("head", "^dim_head$ ^d_kv$ ^kv_channels$ linear_(key_|value_)?head_dim$ ^mamba_(d_head|head_?dim)$"),
    ("half_head", "^rotary_dim$"),
    ("rank", "_rank$ lowrank$ ^d_rel$"),
    ("expert_width", "moe.*intermediate_size$ shared_experts?_intermediate_size$ ^shared_intermediate_size$"),
    ("expert_width", "^expert_ffn_hidden_size$"),
    ("intermediate", "intermediate_size ffn_dim$ ffn_hidden_size$ ^(d_ff|dff|dim_ff|d_inner|mlp_dim|n_inner)$"),
    ("intermediate", "^feed_forward_size$"),
    ("state", "state_size$ d_state$"),
    ("window", "sliding_window(_size)?$ window_size$ ^local_attention$ window_len$ chunk_size$ ^block_size$"),
    ("window", "chunk_length$ ^index_topk$ ^index_block_size$"),
    ("hidden", "hidden_size ^(d_model|n_embd|emb_dim|embedding_dim|lru_width|dim|d_embed)$ embed_dim$ embedding_size$"),
    ("hidden", "embed_proj_dim$ _(out|output|in|input)_dim$ ^adapter_input_size$"),
    # Of so many blocks one is of a kind.
    (2, "(layer_period|every_n_layers|layer_group_size|layer_interval|layer_step|sparse_step)$"),
    (2, "sliding_window_pattern$"),
    (1, "layer_offset$"),
)
"""The size, a field of ``Scale`` or a number, and what names have it; the first that matches counts."""

_COMPILED = [(size, re.compile("|".join(patterns.split()))) for size, patterns in SIZES]


def small_size(name: str, value: int, scale: Scale) -> int:
    """The value of the field ``name`` in a model of this scale; never more than its default ``value``."""
    for size, pattern in _COMPILED:
        if pattern.search(name):
            if size == "keep":
                return value
            if size == "half_head":
                return min(value, scale.head // 2)
            return min(value, size if isinstance(size, int) else getattr(scale, size))
    return value


def special_token(name: str, value: Any) -> Any:
    """A token id below ``SPECIAL_TOKENS``, another one for every name but the usual three."""
    usual = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    found = usual.get(name, 3 + sum(map(ord, name)) % (SPECIAL_TOKENS - 3))
    return found if isinstance(value, int) else [found]


def small_rope(parameters: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """Rotary settings for small heads: the same kinds, with short ranges."""
    small: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            small[name] = small_rope(value, scale)
        elif name == "original_max_position_embeddings":
            small[name] = min(value, scale.positions // 2)
        elif name == "mrope_section":
            small[name] = mrope_section(value, round(scale.head // 2 * parameters.get("partial_rotary_factor", 1)))
        elif name.endswith("_factor") and isinstance(value, Sequence):
            small[name] = list(value[: scale.head // 2])
        else:
            small[name] = value
    return small


def mrope_section(sections: Sequence[int], total: int) -> list[int]:
    """As many sections with the sum ``total``."""
    share = total // len(sections)
    return [total - share * (len(sections) - 1)] + [share] * (len(sections) - 1)
