"""A small configuration of any model type, made from the type's own default by the names of its fields.

Nothing here knows a model type. A field is shrunk by what its name says it holds (``sizes``); lists with one entry for every
block are cut to a few blocks of which no two are alike (``blocks``), so that every kind of block is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from model_types.blocks import BLOCK_COUNT, few_blocks
from model_types.sizes import FIRST, Scale, small_rope, small_size, special_token

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
NO_FIELDS = {
    "transformers_version",
    "architectures",
    "return_dict",
    "output_hidden_states",
    "dtype",
    "id2label",
    "label2id",
}


def shrink(config: PreTrainedConfig, scale: Scale, untouched: Iterable[str] = ()) -> PreTrainedConfig:
    """A small configuration of the class of ``config``, which has the type's default values.

    ``untouched``: fields that keep their default. Raises whatever the configuration class says of the values.
    """
    small = _small_fields(config, scale, frozenset(untouched))
    parts = {name: shrink(value, scale, untouched) for name, value in sub_configs(config).items()}
    make: Any = type(config)  # each class has keywords of its own
    shrunk = make(**small, **parts)
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
    return make(**small, **parts, per_layer_config=smaller)


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
        if isinstance(value, (int, float, str))
        and isinstance(declared[name], (int, float, str))
        and value != declared[name]
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
    small = _keep_sum(fields, small) | few_blocks(fields, scale)
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
    if all(name in small for name in ("head_dim", *parts)) and values["head_dim"] == sum(
        values[part] for part in parts
    ):
        return small | {"head_dim": sum(small[part] for part in parts)}
    return small
