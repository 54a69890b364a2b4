"""Secateur's methods given the inputs that another program's pruned blocks make.

When two programs prune block after block, a weight that only one of them prunes changes what all later blocks see. Here
each block is pruned from what the other program's own pruned blocks before it put out, so that what differs is the
method, not the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from secateur.masks import parse_pattern
from secateur.methods.base import Method, ScoreMethod
from secateur.models.batches import make_batches
from secateur.models.capture import capture
from secateur.models.skeleton import Skeleton
from secateur.pruning.collect import collect


def replay(
    model: Path,
    pruned: Path,
    sequences: Sequence[Sequence[int]],
    methods: Mapping[str, Method],
    pattern: str,
    sparsity: float,
) -> Iterator[tuple[str, Tensor, dict[str, Tensor], Tensor | None]]:
    """For each linear of ``model`` in order: its parameter's name, the other program's weight ``[out, in]``, those that
    ``methods`` make of the dense weight, by the methods' keys, and the scores of the first that has such.

    ``pruned``: a safetensors file of the other program's weights by parameter name. ``sequences``: token ids.
    """
    skeleton = Skeleton(model)
    kinds = list(dict.fromkeys(kind for method in methods.values() for kind in method.statistics()))
    activations = capture(skeleton, make_batches(sequences, 1))
    asked = parse_pattern(pattern)
    scoring = [method for method in methods.values() if isinstance(method, ScoreMethod)]
    with safe_open(pruned, "pt") as theirs:
        for index in range(len(skeleton.blocks)):
            block = skeleton.load_block(index)
            linears = skeleton.linears(index)
            stats = collect(index, block, linears, activations, kinds, advance=False)
            for linear in linears:
                weight, their = skeleton.weight(linear), theirs.get_tensor(linear.weight.parameter)
                with torch.inference_mode():
                    ours = {
                        key: method.prune(weight, stats[linear.name], asked, sparsity).weight
                        for key, method in methods.items()
                    }
                    scores = next((one.score(weight, stats[linear.name]) for one in scoring), None)
                yield linear.weight.parameter, their, ours, scores
                linear.rows.data.copy_(their)
            with torch.inference_mode():
                activations.advance(index, block)
            skeleton.drop_block(index)
