"""Which blocks a tiny model has, and all that a configuration says of its blocks one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_types.sizes import Scale, small_size

MOST_KINDS = 8
_COUNTS = "num_hidden_layers num_layers n_layers? num_blocks (en|de)coder_layers num_(en|de)coder_layers depth num_layers_per_stack"
BLOCK_COUNT = re.compile(rf"^(conf_)?({'|'.join(_COUNTS.split())})$")


def few_blocks(fields: dict[str, Any], scale: Scale) -> dict[str, Any]:
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
        heads = {
            name: value
            for name, value in fields.items()
            if re.fullmatch(r"first_k_dense_replace|num_dense_layers", name)
        }
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
        chosen = set(sorted(chosen)[: MOST_KINDS * alike])
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
        return small | {
            name: sum(block >= self.total - value for block in chosen) for name, value in self.tails.items()
        }


def _singular(name: str) -> str:
    return name.removesuffix("_per_layer")


def _increasing_below(values: Sequence[Any], limit: int) -> bool:
    numbers = all(type(value) is int for value in values)
    return numbers and len(values) <= limit and list(values) == sorted(set(values)) and values[-1] < limit
