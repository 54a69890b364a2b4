"""Calibration batches brought to the first block, once it is proven that running block by block is the model's own forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from secateur.errors import ModelError, UsageError
from secateur.models.activations import Activations, Proof, storage, whole
from secateur.models.batches import Batch, unpadded
from secateur.models.hidden import HiddenStates
from secateur.models.paused import Call, PausedForward, telling
from secateur.models.skeleton import Skeleton
from secateur.models.structure import Linear, inputs_of

SEQUENCES, TOKENS = 2, 31
"""How much of the first batch a proof takes; a number of tokens that no model has of anything else."""


@torch.inference_mode()
def capture(skeleton: Skeleton, batches: Sequence[Batch], hidden: HiddenStates | None = None) -> Activations:
    """Run the model's own forward over ``batches`` up to its first block. ``hidden`` decides what stays in memory.

    Where padding would reach the statistics, the sequences are batched anew with others of their length. Raises
    ``ModelError`` when the model cannot be run block by block (``prove``), ``UsageError`` when tokens are to be weighed
    whose rows cannot be told apart.
    """
    proof = prove(skeleton, batches[0]) if batches else Proof()
    if not proof.pads:
        batches = [part for batch in batches for part in unpadded(batch)]
    if proof.astray and any(batch.counted is not None for batch in batches):
        raise UsageError(
            f"pruning.prompt_weight cannot be followed in {type(skeleton.model).__name__}: {proof.astray} is called with other "
            "rows than one for each token, in order. Leave it at 1."
        )
    return Activations(skeleton, batches, HiddenStates() if hidden is None else hidden, proof)


_PROOFS: WeakKeyDictionary[Skeleton, Proof] = WeakKeyDictionary()


@torch.inference_mode()
def prove(skeleton: Skeleton, batch: Batch) -> Proof:
    """Run the dense model over the beginning of ``batch`` twice at once, block by block: as it is, and as calibration data
    runs, with blocks that are called again and hidden states that come and go. Both must give the same, bit for bit.

    Once for a skeleton; costs one read of all blocks. Raises ``ModelError`` naming the block when blocks are not called
    once each and in order, or one gives something else when it is called again.
    """
    if skeleton not in _PROOFS:
        mask = None if batch.mask is None else batch.mask[:SEQUENCES, :TOKENS]
        _PROOFS[skeleton] = _Trial(skeleton, Batch(batch.ids[:SEQUENCES, :TOKENS], mask)).run()
    return _PROOFS[skeleton]


class _Aside(HiddenStates):
    """Hidden states that are always put away and read back, as if they lay on disk."""

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        self._kept[index] = hidden.clone()

    def on_disk(self, index: int) -> bool:
        return True


class _Choices(TorchFunctionMode):
    """Notes when the largest of as many numbers as there are tokens are chosen: which of equals depends on how many."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.seen = tokens, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "topk" and args:
            self.seen |= args[0].shape[-1] == self.tokens
        return func(*args, **(kwargs or {}))


class _Used:
    """What a model computes with after its first block: storages, and whether weights of its own are among them."""

    def __init__(self) -> None:
        self.begun = self.weights = False
        self.storages: set[int] = set()

    def watch(self, tensor: Tensor) -> None:
        if self.begun:
            self.storages.add(storage(tensor))
            self.weights |= isinstance(tensor, nn.Parameter)


class _Trial:
    """One proof. ``plain``: the forward as it is; ``treated``: as calibration data runs."""

    def __init__(self, skeleton: Skeleton, batch: Batch) -> None:
        self.skeleton = skeleton
        self.shape = tuple(batch.ids.shape)
        self.choices = _Choices(self.shape[1])
        self.astray = ""
        self.last = -1  # of the blocks that were run
        self.place = 0
        self.outside = False
        self.used = _Used()
        self.called: set[str] = set()
        with telling(skeleton.model, "before its first block"):
            self.treated = Activations(skeleton, [batch], _Aside(), Proof())
            skeleton.load_outside()
            inputs = batch.model_inputs(skeleton.device)
            self.plain = PausedForward(skeleton.model, skeleton.blocks, inputs, self.used.watch)
        self.first = self.plain.call
        self.variables = list(self.plain.variables())

    def run(self) -> Proof:
        linears = []
        for index in range(len(self.skeleton.blocks)):
            linears += self.skeleton.linears(index)
            if self.plain.index == index and self.plain.call is not None:
                self._block(index, self.plain.call)
        self.skeleton.drop_outside()
        hidden = next(iter(_leaves(self.first)[self.place :]), None)
        lasting = {
            name
            for name, value in self.variables
            if isinstance(hidden, Tensor) and value.shape == hidden.shape and storage(value) in self.used.storages
        }
        uncalled = [one.name for one in linears if one.experts is None and one.name not in self.called]
        return Proof(
            self.place,
            frozenset(lasting),
            self.outside,
            self.last,
            tuple(uncalled),
            pads=not self.astray and not self.choices.seen,
            astray=self.astray,
        )

    def _block(self, index: int, call: Call) -> None:
        block = self.skeleton.load_block(index)
        with telling(self.skeleton.model, f"in block {index}"), self._noting(index), self.choices:
            output = block(*call.args, **call.kwargs)
            again = self.treated.run(index, block, 0)
        with telling(self.skeleton.model, f"after block {index}"):
            self.last, self.used.begun = index, True
            self.plain.go_on(output)
            self.treated.run(index, block, 0, hand_on=True)
        leaves = _leaves(self.plain.call)
        with self.treated.present(0):
            same = _same(leaves, _leaves(self.treated.call(0)))
        if not same or not _same(tree_leaves(output), tree_leaves(again)):
            raise ModelError(
                f"Block {index} of {type(self.skeleton.model).__name__} gives something else when it is called again with the same inputs, so what "
                "the blocks after it would be pruned by is not what they see in the model. Secateur cannot prune this model."
            )
        if self.plain.index < len(self.skeleton.blocks):
            self.outside |= self.used.weights
            if call is self.first:
                self.place = _place_of(leaves, tree_leaves(output), call.leaves)
        self.used.storages |= {storage(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
        self.skeleton.drop_block(index)

    @contextmanager
    def _noting(self, index: int) -> Iterator[None]:
        """Note which linears of block ``index`` are called, and whether with one row for each token."""

        def hook(linear: Linear) -> Callable[..., None]:
            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.called.add(linear.name)
                rows = tuple(inputs_of(args, kwargs).shape[:-1])
                if linear.experts is None and rows not in (self.shape, (math.prod(self.shape),)):
                    self.astray = self.astray or linear.name

            return before

        linears = self.skeleton.linears(index)
        handles = [linear.module.register_forward_pre_hook(hook(linear), with_kwargs=True) for linear in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _place_of(leaves: Sequence[Any], given: Sequence[Any], before: Sequence[Any]) -> int:
    """Which of the leaves of block 1's call are the hidden states: the largest that block 0 gave, or that is new."""
    kept = [
        place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and whole(leaf)
    ]
    from_block = [place for place in kept if any(leaves[place] is one for one in given)]
    new = [place for place in kept if not any(leaves[place] is one for one in before)]
    return max(from_block or new or [0], key=lambda place: leaves[place].numel() if kept else 0)


def _leaves(call: Call | None) -> list[Any]:
    return [] if call is None else call.leaves


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether all tensors among the leaves of two outputs or calls are the same, bit for bit."""
    pairs = zip(some, others, strict=True)
    return all(_equal(one, other) for one, other in pairs if isinstance(one, Tensor) and isinstance(other, Tensor))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
