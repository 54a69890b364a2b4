"""The model's own forward on tensors that have no storage: what can be known of it before any data is there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.models.batches import make_batches
from secateur.models.capture import prove
from secateur.models.experts import Experts, experts_at
from secateur.models.paused import Call, PausedForward
from secateur.models.skeleton import Skeleton
from secateur.models.structure import find_linears

Made = TypeVar("Made")

TOKENS = 32


@torch.inference_mode()
def rehearse(
    skeleton: Skeleton, batch: int, length: int, run: Callable[[int, nn.Module, Call], tuple[Any, Made]]
) -> dict[int, Made] | None:
    """Let a copy of the model run over ``batch`` sequences of ``length`` tokens on the meta device.

    ``run`` gives the output of each block that it calls, and what is wanted of it. Experts get equal shares of the
    tokens. ``None``: the model's own code cannot do without numbers. Raises ``ModelError`` when blocks are not called
    once each and in order.
    """
    model = copy.deepcopy(skeleton.model)
    nn.Module.to(model, "meta")
    blocks = model.get_submodule(skeleton.prefix)
    assert isinstance(blocks, nn.ModuleList)
    mixtures = [experts for module in model.modules() for experts in experts_at(module)]
    share = expert_share(model, mixtures)
    for experts in mixtures:
        experts.module.forward = _Balanced(experts, share)
    for inputs in _inputs(batch, length):
        made: dict[int, Made] = {}
        try:
            forward = PausedForward(model, blocks, inputs)
            while forward.call is not None and forward.index < len(blocks):
                output, made[forward.index] = run(forward.index, blocks[forward.index], forward.call)
                forward.go_on(output)
        except ModelError:
            raise
        except Exception:  # whatever a model's own code makes of tensors without storage
            continue
        return made
    return None


def never_called(skeleton: Skeleton) -> frozenset[str]:
    """Names of the linears, experts aside, that the model does not call on text: encoder attention, ``dt_proj`` of Mamba.

    Found without data, or, where the model cannot run without numbers, on a few random tokens at the cost of one read of
    the checkpoint. Raises ``ModelError`` when the model cannot be run block by block.
    """
    described = skeleton.model.config.to_json_string()
    if described not in _NEVER_CALLED:
        _NEVER_CALLED[described] = _never_called(skeleton)
    return _NEVER_CALLED[described]


_NEVER_CALLED: dict[str, frozenset[str]] = {}


def _never_called(skeleton: Skeleton) -> frozenset[str]:
    def run(index: int, block: nn.Module, call: Call) -> tuple[Any, set[str]]:
        called: set[str] = set()
        handles = [
            linear.module.register_forward_pre_hook(lambda *_, name=linear.name: called.add(name))
            for linear in find_linears(block, f"{skeleton.prefix}.{index}", index)
        ]
        output = block(*call.args, **call.kwargs)
        for handle in handles:
            handle.remove()
        return output, called

    made = rehearse(skeleton, 1, TOKENS, run)
    if made is None:
        random = torch.randint(skeleton.model.config.get_text_config().vocab_size, (2, TOKENS))
        return frozenset(prove(skeleton, make_batches(random.tolist(), 2)[0]).uncalled)
    linears = [linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)]
    called = set().union(*made.values())
    return frozenset(one.name for one in linears if one.experts is None and one.name not in called)


def _inputs(batch: int, length: int) -> Iterator[dict[str, Any]]:
    """What to try: a mask that is ready for use, and positions, spare most models a look at numbers that are not there."""
    ids = torch.zeros(batch, length, dtype=torch.long, device="meta")
    ready = torch.ones(batch, 1, length, length, dtype=torch.bool, device="meta")
    yield {"input_ids": ids, "attention_mask": ready, "position_ids": ids}
    yield {"input_ids": ids, "position_ids": ids}
    yield {"input_ids": ids}


def expert_share(model: nn.Module, mixtures: Sequence[Experts]) -> float:
    """The share of its mixture's tokens that an expert sees, if all see as many."""
    config = getattr(model, "config", None)
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    return chosen / mixtures[0].count if mixtures else 1.0


class _Balanced:
    """Stands in for the forward of ``Experts``, whose choice of tokens needs numbers."""

    def __init__(self, experts: Experts, share: float) -> None:
        self.experts, self.share = experts, share

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states, *_ = self.experts.arguments(args, kwargs)
        rows = max(1, round(hidden_states.shape[0] * self.share))
        output = torch.zeros_like(hidden_states)
        for expert in range(self.experts.count):
            output[:rows] += self.experts.run(expert, hidden_states[:rows].clone(), None)
        return output
