"""A small configuration of any model type, made from the type's own default by the names of its fields.

Nothing here knows a model type. A field is shrunk by what its name says it holds (``SIZES``); lists with one entry for every
block are cut to a few blocks of which no two are alike, so that every kind of block is there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

SPECIAL_TOKENS = 32
"""Token ids below this are special to some model (images, padding, ...); calibration data has only others."""
MOST_BLOCKS = 8


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

_LAYERS = "num_hidden_layers|num_layers|n_layers?|num_blocks|(en|de)coder_layers|num_(en|de)coder_layers|depth|num_layers_per_stack"
BLOCK_COUNT = re.compile(rf"^(conf_)?({_LAYERS})$")
SIZES: tuple[tuple[str, str], ...] = (
    # What no size is said by, although the name may look like it.
    (r"^(chunk_size_feed_forward|chunk_size_lm_head|pretraining_tp|seed|type_vocab_size|task_type_vocab_size)$", "keep"),
    (r"_token_(id|index)$|^(mask|unk|pad|bos|eos)_index$|^lang_id$", "keep"),
    (r"(conv_channels|out_channel|output_channels)$", "hidden"),
    (r"^(num_)?(image_)?channels$|^in_channels$|^out_channels$|kernel|stride|_width$|^conv_L_cache$", "keep"),
    # Vocabularies and positions.
    (r"^codebook_size$", 256),  # a power of two
    (r"vocab|^num_centroids$", "vocabulary"),
    (r"position_embeddings$|^n_positions$|^n_ctx$|^max_seq_len$|^max_(target|source)_positions$", "positions"),
    (r"^context_length$|^model_max_length$|max_distance$|^rel_extent$|^floor_scale$", "positions"),
    # How many of what.
    (r"num_key_value_heads$|^num_kv_heads$|^kv_n_heads$|^num_query_groups$", "kv_heads"),
    (r"attention_heads$|^(n|num)_heads?$|^linear_num_(key_|value_)?heads$|^index_n_heads$", "heads"),
    (r"^(n_mamba_heads|mamba_n_heads|mamba_num_heads)$", "heads"),
    (r"^(moe_num|num_local|n_routed|num)_experts$|^zero_expert_num$", "experts"),
    (r"experts_per_tok(en)?$|^moe_top_?k$|^moe_k$", 2),
    (r"^(n_group|num_expert_group)$", 2),
    (r"^topk_group$", 1),
    (r"^(num|n)_shared_experts$|^moe_num_shared_experts$", 1),
    (r"^(mamba_)?n_?groups$|^mamba_ngroups$|^o_groups$", 2),
    # Dimensions.
    (r"^(attention_)?head_(dim|size)$|^swa_head_dim$|^attention_head_size$|^d_head$|^dim_head$|^d_kv$|^kv_channels$", "head"),
    (r"^(qk_nope|qk_rope|v)_head_dim$|^index_head_dim$|linear_(key_|value_)?head_dim$|^mamba_(d_head|head_dim)$", "head"),
    (r"^mamba_headdim$", "head"),
    (r"^rotary_dim$", "half_head"),
    (r"lora_rank$|_rank$|lowrank$|^d_rel$|^adapter_rank$", "rank"),
    (r"moe.*intermediate_size$|^expert_ffn_hidden_size$|shared_experts?_intermediate_size$", "expert_width"),
    (r"^shared_intermediate_size$", "expert_width"),
    (r"intermediate_size|ffn_dim$|ffn_hidden_size$|^(d_ff|dff|dim_ff|d_inner|mlp_dim|n_inner|feed_forward_size)$", "intermediate"),
    (r"state_size$|d_state$", "state"),
    (r"sliding_window(_size)?$|window_size$|^local_attention$|window_len$|^keep_window_size$", "window"),
    (r"chunk_size$|^block_size$|chunk_length$|^index_topk$|^index_block_size$", "window"),
    (r"^index_topk_blocks$", 2),
    (r"^conf_attention|^hc_sinkhorn_iters$", "keep"),
    (r"hidden_size|^(d_model|n_embd|emb_dim|embedding_dim|embed_dim|ple_embed_dim|lru_width|dim|d_embed)$", "hidden"),
    (r"embedding_size$|embed_proj_dim$|embed_dim$|^adapter_input_size$|_output_dim$|_input_dim$|^adapter_(in|out)_dim$", "hidden"),
    # What says where blocks of a kind are.
    (r"(layer_period|every_n_layers|layer_group_size|layer_interval|layer_step|sparse_step|sliding_window_pattern)$", 2),
    (r"layer_offset$", 1),
)
SIZES_WHEN_UNSET = {
    "head_dim",
    "num_key_value_heads",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_topk",
    "n_shared_experts",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
}
UNLIMITED = 10**9
UNDECLARED = object()
NO_FIELDS = {"transformers_version", "architectures", "return_dict", "output_hidden_states", "dtype", "id2label", "label2id"}
_COMPILED = [(re.compile(pattern), size) for pattern, size in SIZES]


def shrink(config: PreTrainedConfig, scale: Scale, untouched: Iterable[str] = ()) -> PreTrainedConfig:
    """A small configuration of the class of ``config``, which has the type's default values.

    ``untouched``: fields that keep their default. Raises whatever the configuration class says of the values.
    """
    small = _small_fields(config, scale, frozenset(untouched))
    parts = {name: shrink(value, scale, untouched) for name, value in sub_configs(config).items()}
    shrunk = type(config)(**small, **parts)
    by_block = shrunk.to_dict().get("per_layer_config")
    if not by_block:
        return shrunk
    # Blocks that differ in size from the others: they still shall, so their heads are twice as wide.
    wider = replace(scale, head=2 * scale.head)
    smaller = {
        int(block): _keep_sum(
            own,
            {name: small_size(name, value, wider) if type(value) is int else value for name, value in own.items()},
        )
        for block, own in by_block.items()
    }
    return type(config)(**small, **parts, per_layer_config=smaller)


def sub_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    return {name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}


def changed_fields(config: PreTrainedConfig) -> list[str]:
    """The fields that ``shrink`` would give another value, those of sub-configurations included."""
    own = list(_small_fields(config, FIRST, frozenset()))
    inner = [name for part in sub_configs(config).values() for name in changed_fields(part)]
    return list(dict.fromkeys(own + inner))


def _small_fields(config: PreTrainedConfig, scale: Scale, untouched: frozenset[str]) -> dict[str, Any]:
    declared = {field.name: field.default for field in dataclasses.fields(config)}
    # Some fields are declared nowhere but read from the keywords; others of that kind are worked out from the declared.
    given = scale.unset != "left"
    loose = [name for name in vars(config) if name not in declared and name not in NO_FIELDS]
    declared |= {name: UNDECLARED for name in loose if given or "experts" in name}
    values = {name: vars(config).get(name) for name in declared}
    fields = {name: value for name, value in values.items() if value is not None}
    # What a hint made another than the class would.
    small: dict[str, Any] = {
        name: value
        for name, value in fields.items()
        if isinstance(value, (int, float, str)) and isinstance(declared[name], (int, float, str)) and value != declared[name]
    }
    for name, value in values.items():
        if name.endswith(("_token_id", "_token_index")) and value is not None:
            small[name] = special_token(name, value)
        elif BLOCK_COUNT.match(name) or isinstance(value, bool):
            continue
        elif isinstance(value, int):
            worked_out = declared[name] is None or isinstance(declared[name], str)
            if given or not worked_out or name.endswith(("intermediate_size", "ffn_dim")):
                small[name] = small_size(name, value, scale)
        elif value is None and scale.unset == "filled" and name in SIZES_WHEN_UNSET:
            small[name] = small_size(name, UNLIMITED, scale)
    small = _keep_sum(fields, small) | _few_blocks(fields, scale)
    if isinstance(fields.get("image_size"), int) and isinstance(fields.get("patch_size"), int):
        small["image_size"] = min(fields["image_size"], 4 * fields["patch_size"])
    if isinstance(fields.get("rope_parameters"), dict):
        small["rope_parameters"] = small_rope(fields["rope_parameters"], scale)
    if "is_decoder" in fields:
        small["is_decoder"] = True
    return {name: value for name, value in small.items() if name not in untouched and value != declared[name]}


def _keep_sum(values: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """``small``, with the width of a head still the sum of its parts where it was in ``values``."""
    parts = ("qk_nope_head_dim", "qk_rope_head_dim")
    if all(name in small for name in ("head_dim", *parts)) and values["head_dim"] == sum(values[part] for part in parts):
        return small | {"head_dim": sum(small[part] for part in parts)}
    return small


def small_size(name: str, value: int, scale: Scale) -> int:
    """The value of the field ``name`` in a model of this scale; never more than its default ``value``."""
    for pattern, size in _COMPILED:
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


def _few_blocks(fields: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """The number of blocks, and all that says of each what it is."""
    counts = {name: value for name, value in fields.items() if BLOCK_COUNT.match(name) and isinstance(value, int)}
    if not counts:
        return {}
    total = max(counts.values())
    layout = BlockLayout.of(fields, total)
    patterns = [value for name, value in fields.items() if re.search(r"block_types?$|layer_types$", name)]
    least = max([scale.blocks, *(len(pattern) for pattern in patterns if len(pattern) < total)])
    chosen = layout.unlike_blocks(least, scale.alike)
    small: dict[str, Any] = {name: len(chosen) for name, value in counts.items() if value == total}
    small |= {name: min(value, scale.blocks) for name, value in counts.items() if value != total}
    return small | layout.at(chosen, scale)


@dataclass(frozen=True)
class BlockLayout:
    """What a configuration says of its ``total`` blocks one by one.

    ``lists``: one entry for each block; ``members``: numbers of some blocks; ``heads``: how many of the first blocks, and
    ``tails``: how many of the last.
    """

    total: int
    lists: dict[str, list[Any] | tuple[Any, ...]]
    members: dict[str, list[int] | tuple[int, ...]]
    heads: dict[str, int]
    tails: dict[str, int]

    @classmethod
    def of(cls, fields: dict[str, Any], total: int) -> BlockLayout:
        lists: dict[str, list[Any] | tuple[Any, ...]] = {}
        members: dict[str, list[int] | tuple[int, ...]] = {}
        for name, value in fields.items():
            if not isinstance(value, (list, tuple)) or not value:
                continue
            if re.search(r"layers|layer_ids|idxs|indexes|indices", name) and _increasing_below(value, total):
                members[name] = value
            elif len(value) == total and not isinstance(value[0], (list, tuple, dict)):
                lists[name] = value
        heads = {name: value for name, value in fields.items() if re.fullmatch(r"first_k_dense_replace|num_dense_layers", name)}
        tails = {name: value for name, value in fields.items() if name == "num_kv_shared_layers"}
        return cls(total, lists, members, heads, tails)

    def kind(self, block: int) -> tuple[Any, ...]:
        """What tells a block from others."""
        return (
            *(repr(value[block]) for value in self.lists.values()),
            *(block in value for value in self.members.values()),
            *(block < value for value in self.heads.values()),
            *(block >= self.total - value for value in self.tails.values()),
        )

    def unlike_blocks(self, least: int, alike: int = 1) -> list[int]:
        """``alike`` blocks of every kind, in order, and as many more from the start as make ``least``."""
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for block in range(self.total):
            kinds.setdefault(self.kind(block), []).append(block)
        chosen = {block for blocks in kinds.values() for block in blocks[:alike]}
        chosen = set(sorted(chosen)[: MOST_BLOCKS * alike])
        for block in range(self.total):
            if len(chosen) < least:
                chosen.add(block)
        return sorted(chosen)

    def at(self, chosen: list[int], scale: Scale) -> dict[str, Any]:
        """The same fields for a model of the ``chosen`` blocks only."""
        small: dict[str, Any] = {}
        for name, value in self.lists.items():
            kept = (value[block] for block in chosen)
            # Some classes add tuples up.
            small[name] = type(value)(
                small_size(_singular(name), item, scale) if type(item) is int else item for item in kept
            )
        for name, value in self.members.items():
            small[name] = type(value)(number for number, block in enumerate(chosen) if block in value)
        small |= {name: sum(block < value for block in chosen) for name, value in self.heads.items()}
        return small | {name: sum(block >= self.total - value for block in chosen) for name, value in self.tails.items()}


def _singular(name: str) -> str:
    return name.removesuffix("_per_layer")


def _increasing_below(values: Sequence[Any], limit: int) -> bool:
    numbers = all(type(value) is int for value in values)
    return numbers and len(values) <= limit and list(values) == sorted(set(values)) and values[-1] < limit
