"""What enters the first block, and with which arguments each block is called: captured once, replayed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from secateur.models.batches import Batch
from secateur.models.hidden import HiddenStates
from secateur.models.skeleton import Skeleton

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Stopped(Exception):
    """Raised to end a forward whose remainder is not needed."""


class Activations:
    """The hidden states of every calibration batch at the entry of the current block.

    ``masks``: which tokens of each batch count in statistics, or how much. Blocks are called with the very arguments the
    model's own forward passed to them, captured per block (models with several attention types pass different ones).
    """

    def __init__(
        self,
        hidden: HiddenStates,
        arguments: list[list[Arguments]],
        masks: list[Tensor | None],
        returns_tuple: bool = False,
    ) -> None:
        self.hidden = hidden
        self.masks = masks
        self.returns_tuple = returns_tuple
        self._arguments = arguments

    def forward(self, index: int, block: nn.Module, batch: int) -> Tensor:
        """The output of block ``index`` for one batch."""
        args, kwargs = self._arguments[batch][index]
        return first_output(block(self.hidden[batch], *args, **kwargs))

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace the hidden states by the outputs of block ``index``."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self.forward(index, block, batch)


def first_output(output: Any) -> Tensor:
    """Blocks return their hidden states alone or first in a tuple, depending on the architecture and version."""
    return output[0] if isinstance(output, tuple) else output


@torch.inference_mode()
def capture(skeleton: Skeleton, batches: Sequence[Batch], hidden: HiddenStates | None = None) -> Activations:
    """Run the model's own forward over ``batches`` with stand-ins for the blocks that only note how they are called.

    What enters the first block is put into ``hidden``, which decides what stays in memory.
    """
    hidden = HiddenStates() if hidden is None else hidden
    skeleton.load_outside()
    skeleton.load_block(0)
    recorder = _Recorder(skeleton.blocks[0])
    arguments = []
    with _stand_ins(skeleton, recorder, _stop):
        for batch in batches:
            recorder.start()
            with suppress(_Stopped):
                skeleton.model(**batch.model_inputs(skeleton.device), use_cache=False)
            assert recorder.hidden is not None
            hidden.append(recorder.hidden)
            arguments.append(recorder.arguments)
    skeleton.drop_block(0)
    skeleton.drop_outside()
    return Activations(hidden, arguments, [batch.counted for batch in batches], bool(recorder.returns_tuple))


@torch.inference_mode()
def capture_head_inputs(skeleton: Skeleton, batches: Sequence[Batch], activations: Activations) -> Iterator[Tensor]:
    """What enters the output head for each batch, given the hidden states after the last block."""
    head = skeleton.model.get_output_embeddings()
    assert head is not None
    skeleton.load_outside()
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0])
        raise _Stopped

    handle = head.register_forward_pre_hook(catch)
    try:
        for batch, hidden in zip(batches, activations.hidden, strict=True):
            recorder = _Recorder(skeleton.blocks[0], activations.returns_tuple)
            with _stand_ins(skeleton, recorder, lambda _, hidden=hidden: hidden), suppress(_Stopped):
                skeleton.model(**batch.model_inputs(skeleton.device), use_cache=False)
            yield caught.pop()
    finally:
        handle.remove()
        skeleton.drop_outside()


def _stop(_: Tensor) -> Tensor:
    raise _Stopped


@contextmanager
def _stand_ins(skeleton: Skeleton, recorder: _Recorder, after_last: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put stand-ins in the blocks' places; ``after_last`` gives what the last one returns."""
    originals = list(skeleton.blocks)
    try:
        for index, block in enumerate(originals):
            skeleton.blocks[index] = _StandIn(block, recorder, after_last if index == len(originals) - 1 else None)
        yield
    finally:
        for index, block in enumerate(originals):
            skeleton.blocks[index] = block


class _Recorder:
    """Collects the calls of one forward; tensors equal to the previous batch's are kept once."""

    def __init__(self, first_block: nn.Module, returns_tuple: bool | None = None) -> None:
        self.first_block = first_block
        self.returns_tuple = returns_tuple
        self.hidden: Tensor | None = None
        self.arguments: list[Arguments] = []
        self._known: list[Tensor] = []

    def start(self) -> None:
        self.hidden, self.arguments = None, []

    def reached(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Note one call; its hidden states."""
        if not args:
            args, kwargs = (kwargs["hidden_states"],), {k: v for k, v in kwargs.items() if k != "hidden_states"}
        hidden, *rest = args
        if self.returns_tuple is None:
            self.returns_tuple = isinstance(self.first_block(hidden, *rest, **kwargs), tuple)
        if self.hidden is None:
            self.hidden = hidden
        self.arguments.append((tuple(map(self._intern, rest)), {k: self._intern(v) for k, v in kwargs.items()}))
        return hidden

    def _intern(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._intern, value))
        if not isinstance(value, Tensor):
            return value
        for known in self._known:
            if known is value or (
                known.shape == value.shape and known.dtype == value.dtype and torch.equal(known, value)
            ):
                return known
        self._known.append(value)
        return value


class _StandIn(nn.Module):
    """Takes the place of a block: notes its call and passes the hidden states on, or ``replace``s them."""

    def __init__(self, block: nn.Module, recorder: _Recorder, replace: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.__dict__["_block"] = block
        self._recorder = recorder
        self._replace = replace

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self._recorder.reached(args, kwargs)
        if self._replace is not None:
            hidden = self._replace(hidden)
        return (hidden,) if self._recorder.returns_tuple else hidden
