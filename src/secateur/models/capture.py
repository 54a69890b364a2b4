"""What enters the first block, and with which arguments each block is called: captured once, replayed block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.models.batches import Batch
from secateur.models.skeleton import Skeleton

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _AllBlocksPassed(Exception):
    """Raised by the last stand-in: what comes after the blocks is not needed."""


class Activations:
    """The hidden states of every calibration batch at the entry of the current block.

    ``hidden``: one ``[batch, length, width]`` tensor a batch. Blocks are called with the very arguments the model's own
    forward passed to them, captured per block (models with several attention types pass different ones).
    """

    def __init__(self, hidden: list[Tensor], arguments: list[list[Arguments]], masks: list[Tensor | None]) -> None:
        self.hidden = hidden
        self.masks = masks
        self._arguments = arguments

    def forward(self, index: int, block: nn.Module, batch: int) -> Tensor:
        """The output of block ``index`` for one batch."""
        args, kwargs = self._arguments[batch][index]
        return first_output(block(self.hidden[batch], *args, **kwargs))

    def advance(self, index: int, block: nn.Module, progress: Callable[[], None] = lambda: None) -> None:
        """Replace the hidden states by the outputs of block ``index``."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self.forward(index, block, batch)
            progress()


def first_output(output: Any) -> Tensor:
    """Blocks return their hidden states alone or first in a tuple, depending on the architecture and version."""
    return output[0] if isinstance(output, tuple) else output


@torch.inference_mode()
def capture(skeleton: Skeleton, batches: Sequence[Batch]) -> Activations:
    """Run the model's own forward over ``batches`` with stand-ins for the blocks that only note how they are called."""
    skeleton.load_outside()
    skeleton.load_block(0)
    recorder = _Recorder(skeleton.blocks[0])
    originals = list(skeleton.blocks)
    hidden, arguments = [], []
    try:
        for index, block in enumerate(originals):
            skeleton.blocks[index] = _StandIn(block, index, len(originals), recorder)
        for batch in batches:
            recorder.start()
            try:
                skeleton.model(**batch.model_inputs(skeleton.device), use_cache=False)
            except _AllBlocksPassed:
                pass
            assert recorder.hidden is not None
            hidden.append(recorder.hidden)
            arguments.append(recorder.arguments)
    finally:
        for index, block in enumerate(originals):
            skeleton.blocks[index] = block
    skeleton.drop_block(0)
    skeleton.drop_outside()
    return Activations(hidden, arguments, [batch.mask for batch in batches])


class _Recorder:
    """Collects the calls of one forward; tensors equal to the previous batch's are kept once."""

    def __init__(self, first_block: nn.Module) -> None:
        self.first_block = first_block
        self.returns_tuple: bool | None = None
        self.hidden: Tensor | None = None
        self.arguments: list[Arguments] = []
        self._known: list[Tensor] = []

    def start(self) -> None:
        self.hidden, self.arguments = None, []

    def reached(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            args, kwargs = (kwargs["hidden_states"],), {k: v for k, v in kwargs.items() if k != "hidden_states"}
        hidden, *rest = args
        if self.returns_tuple is None:
            self.returns_tuple = isinstance(self.first_block(hidden, *rest, **kwargs), tuple)
        if self.hidden is None:
            self.hidden = hidden
        self.arguments.append((tuple(map(self._intern, rest)), {k: self._intern(v) for k, v in kwargs.items()}))
        return (hidden,) if self.returns_tuple else hidden

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
    """Takes the place of a block: notes its call, passes the hidden states on, and stops after the last."""

    def __init__(self, block: nn.Module, index: int, count: int, recorder: _Recorder) -> None:
        super().__init__()
        self.__dict__["_block"] = block
        self._last = index == count - 1
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._recorder.reached(args, kwargs)
        if self._last:
            raise _AllBlocksPassed
        return output
