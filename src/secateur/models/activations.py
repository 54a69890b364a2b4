"""Calibration batches on their way through the model, one block at a time, within the model's own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ModelError
from secateur.models.batches import Batch
from secateur.models.hidden import HiddenStates
from secateur.models.paused import Call, PausedForward
from secateur.models.skeleton import Skeleton


@dataclass(frozen=True)
class Proof:
    """What was seen of a model's forward as it was proven (``capture.prove``).

    ``place``: among the leaves of a block's call, that of the hidden states. ``lasting``: the forward's variables shaped
    like hidden states that it still uses after block 0 (``None``: perhaps all). ``outside``: whether it computes with weights of its own between
    two blocks. ``last``: the last block it calls. ``uncalled``: names of the linears it never called, experts aside.
    ``pads``: whether a padded batch gives the statistics of its sequences; ``astray``: a linear that is called with other
    rows than one for each token, in order ("": none).
    """

    place: int = 0
    lasting: frozenset[str] | None = None
    outside: bool = False
    last: int = 0
    uncalled: tuple[str, ...] = ()
    pads: bool = True
    astray: str = ""


class Activations:
    """Every calibration batch in the model's own forward, which waits for the current block to be run.

    ``masks``: which tokens of each batch count in statistics, or how much. ``hidden``: the hidden states that each batch
    waits with, which may lie on disk; of all else that a forward holds what is equal to the first batch's is kept once.
    """

    def __init__(self, skeleton: Skeleton, batches: Sequence[Batch], hidden: HiddenStates, proof: Proof) -> None:
        self.hidden = hidden
        self.masks = [batch.counted for batch in batches]
        self._skeleton, self._proof, self._name = skeleton, proof, type(skeleton.model).__name__
        self._forwards: list[PausedForward] = []
        self._waiting: list[Tensor | None] = []
        self._first: list[Any] = []
        self._stale: list[list[Tensor]] = []
        if batches:
            skeleton.load_outside()
            for batch in batches:
                inputs = batch.model_inputs(skeleton.device)
                self._start(PausedForward(skeleton.model, skeleton.blocks, inputs, partial(_refuse_freed, self._name)))
            skeleton.drop_outside()

    def __len__(self) -> int:
        return len(self._forwards)

    def call(self, batch: int) -> Call | None:
        """What the forward of a batch waits with; ``None``: it has ended."""
        return self._forwards[batch].call

    def run(self, index: int, block: nn.Module, batch: int, hand_on: bool = False) -> Any:
        """All that block ``index`` gives for one batch; with ``hand_on`` (within ``handing_on``) the forward goes on to its
        next call. ``None`` for a block that the model does not call."""
        call = self.call(batch)
        if call is None or self._forwards[batch].index > index:
            return None
        with self.present(batch):
            output = block(*call.args, **call.kwargs)
            if hand_on:
                self._forwards[batch].go_on(output)
                self._arrived(batch)
        return output

    def forward(self, index: int, block: nn.Module, batch: int) -> Tensor:
        """The hidden states that block ``index`` gives for one batch."""
        return next(leaf for leaf in tree_leaves(self.run(index, block, batch)) if isinstance(leaf, Tensor))

    @torch.inference_mode()
    def advance(self, index: int, block: nn.Module) -> None:
        """Run block ``index`` over every batch and hand its outputs on."""
        with self.handing_on(index):
            for batch in range(len(self)):
                self.run(index, block, batch, hand_on=True)

    @contextmanager
    def handing_on(self, index: int) -> Iterator[None]:
        """While this is open, forwards may go on from block ``index``: the weights they use on their way are there."""
        if not self._proof.outside and index < self._proof.last:
            yield
            return
        self._skeleton.load_outside()
        try:
            yield
        finally:
            self._skeleton.drop_outside()

    def head_inputs(self) -> Iterator[Tensor]:
        """What enters the output head for each batch, once the last block's outputs are handed on."""
        for batch in range(len(self)):
            with self.present(batch):
                yield next(leaf for leaf in self._leaves(batch) if isinstance(leaf, Tensor))

    def _start(self, forward: PausedForward) -> None:
        """Let a forward wait for block 0, without what it computed on its way and will never use again."""
        self._forwards.append(forward)
        self._waiting.append(None)
        self._stale.append([])
        batch = len(self) - 1
        self._arrived(batch)
        hidden = self._waiting[batch]
        if hidden is not None and self._proof.lasting is not None:
            alike = [(name, value) for name, value in forward.variables() if value.shape == hidden.shape]
            needed = {storage(value) for name, value in alike if name in self._proof.lasting}
            stale = [value for _, value in alike if storage(value) not in needed]
            entering = {storage(leaf) for leaf in self._leaves(batch) if isinstance(leaf, Tensor)}
            _free(value for value in stale if storage(value) not in entering)
            self._stale[batch] = [value for value in stale if storage(value) in entering]

    def _arrived(self, batch: int) -> None:
        """Settle a forward that has come to its next call: its hidden states, what it no longer needs, what is shared."""
        _free(self._stale[batch])
        self._stale[batch] = []
        leaves = self._leaves(batch)
        hidden = self._waiting[batch] = self._hidden_states(batch)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                _refuse_freed(self._name, leaf)
        if batch == 0:
            self._first = leaves
        for leaf, first in zip(leaves, self._first, strict=False):
            if leaf is not hidden:
                _share(leaf, first)
        if hidden is None:
            del self.hidden[batch]
            return
        self.hidden[batch] = hidden
        if self.hidden.on_disk(batch):
            _free([hidden])

    def _hidden_states(self, batch: int) -> Tensor | None:
        """What a forward waits with that the block before gave it, where that is a tensor by itself."""
        forward = self._forwards[batch]
        leaves = self._leaves(batch)
        place = self._proof.place if forward.index < len(self._skeleton.blocks) else 0
        found = leaves[place] if place < len(leaves) else None
        return found if isinstance(found, Tensor) and found.is_floating_point() and whole(found) else None

    def _leaves(self, batch: int) -> list[Any]:
        call = self.call(batch)
        return [] if call is None else call.leaves

    @contextmanager
    def present(self, batch: int) -> Iterator[None]:
        """While this is open, the hidden states of a batch are in memory."""
        hidden = self._waiting[batch]
        if hidden is None or not _freed(hidden):
            yield
            return
        with torch.inference_mode():  # tensors that are made in it are changed in it only
            hidden.set_(self.hidden[batch])  # pyright: ignore[reportArgumentType, reportCallIssue]
        try:
            yield
        finally:
            if self._waiting[batch] is hidden:
                _free([hidden])


def _refuse_freed(name: str, tensor: Tensor) -> None:
    """Not a method, so that forwards do not refer to what holds them: they are to go when it does."""
    if _freed(tensor):
        raise ModelError(
            f"{name} computes with what it had before its first block in some batches and not in others, so its blocks "
            "cannot be run one at a time. Secateur cannot prune this model."
        )


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its storage, in order: no view of a part of something."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


@cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), float("nan"), dtype=dtype, device=device)


def _freed(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and storage(tensor) == storage(_nothing(tensor.dtype, tensor.device))


@torch.inference_mode()
def _free(tensors: Iterable[Tensor]) -> None:
    """Let go of the numbers of tensors that a forward's variables still name: all become one and the same NaN."""
    for tensor in tensors:
        nothing = _nothing(tensor.dtype, tensor.device)
        tensor.set_(nothing.untyped_storage(), 0, tensor.shape, [0] * tensor.ndim)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _share(leaf: Any, first: Any) -> None:
    """Let ``leaf`` have the numbers of ``first`` if they are the same, so that they are in memory once."""
    if not (isinstance(leaf, Tensor) and isinstance(first, Tensor)) or leaf.data_ptr() == first.data_ptr():
        return
    alike = leaf.shape == first.shape and leaf.dtype == first.dtype and whole(leaf) and whole(first)
    if alike and leaf.is_inference() and torch.equal(leaf, first):
        leaf.set_(first)  # pyright: ignore[reportArgumentType, reportCallIssue]
