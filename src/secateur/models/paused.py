"""The model's own forward, which waits wherever it is about to call a block, so that blocks can be run one at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from secateur.errors import ModelError, SecateurError

ASKING = {"__get__", "size", "dim", "numel", "is_floating_point"}
"""Functions that ask for a tensor's shape or kind, not for its numbers."""


@dataclass(frozen=True)
class Call:
    """What a block, or the output head, is about to be called with."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """All arguments, those within tuples, lists and dictionaries one by one, in a fixed order."""
        return tree_leaves((self.args, self.kwargs))


class PausedForward:
    """The model's own forward of one batch: its code and its variables, with whatever it does between two blocks.

    It runs until it calls a block, and after each ``go_on`` until it calls the next, or in the end the output head;
    ``index`` and ``call`` say which and with what (``call`` ``None``: it has ended, without a head). ``watch`` is told of
    every tensor it computes with. Raises ``ModelError`` naming the block when the model calls one again, or before an
    earlier one; and whatever the model's own code raises.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: nn.ModuleList,
        inputs: dict[str, Any],
        watch: Callable[[Tensor], None] = lambda tensor: None,
    ) -> None:
        self.index = -1
        self.call: Call | None = None
        self._stops = [*blocks, model.get_output_embeddings()]
        self._name, self._watch = type(model).__name__, watch
        _make_pausable(model, self._stops)
        inputs = _accepted(model, inputs)
        self._run = _Run(lambda: model(**inputs))
        self._switch()

    def go_on(self, output: Any) -> None:
        """Give the model ``output`` as the block's, and let it run to its next call."""
        self.call = None
        self._switch(output)

    def variables(self) -> Iterator[tuple[str, Tensor]]:
        """The local variables of the functions that wait which are tensors of floating point, with their names."""
        frame = self._run.gr_frame
        while frame is not None:
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield f"{frame.f_code.co_name}.{name}", value
            frame = frame.f_back

    def _switch(self, *output: Any) -> None:
        self.index += 1
        self._run.parent = getcurrent()
        with _Watching(self._watch):
            call = self._run.switch(*output)
        self.call = None if self._run.dead else call
        self._check_order()

    def _check_order(self) -> None:
        """Let ``index`` be what the forward has come to, which may be after blocks that it does not call."""
        if self.call is None:
            self.index = len(self._stops) - 1
            return
        reached = self.call.module
        place = next(number for number, stop in enumerate(self._stops) if stop is reached)
        if place < self.index:
            raise ModelError(
                f"{self._name} calls {self._due(place)} again where {self._due(self.index)} is due. Secateur prunes one block "
                "after another, each of which is called once; it cannot prune this model."
            )
        self.index = place

    def _due(self, index: int) -> str:
        return f"block {index}" if index < len(self._stops) - 1 else "its output head"


@contextmanager
def telling(model: nn.Module, where: str) -> Iterator[None]:
    """Turn what the model's own code raises into a ``ModelError`` that says ``where``."""
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(
            f"The forward of {type(model).__name__} fails {where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


class _Run(greenlet):
    """Where a forward waits: a block that is called in it hands its arguments to the parent."""


class _Watching(TorchFunctionMode):
    """Tells of every tensor that a function computes with; how it is computed stays as it is."""

    def __init__(self, watch: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ASKING:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._watch(leaf)
        return func(*args, **(kwargs or {}))


def _make_pausable(model: nn.Module, modules: Sequence[Any]) -> None:
    if "forward" in vars(modules[0]):
        return
    _settle(model)
    for module in modules:
        if module is not None:
            module.forward = MethodType(_forward, module)  # a method, so that a copy of the model has its own


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block: in a ``PausedForward`` it waits to be given its output, elsewhere it computes it."""
    if isinstance(getcurrent(), _Run):  # kept in no variable: a greenlet that its own stack refers to is never freed
        return getcurrent().parent.switch(Call(module, args, kwargs))  # pyright: ignore[reportOptionalMemberAccess]
    return type(module).forward(module, *args, **kwargs)


def _accepted(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """``inputs`` and ``use_cache=False``, as far as the model's forward takes them."""
    known = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in (inputs | {"use_cache": False}).items() if takes_all or name in known}


def _settle(model: nn.Module) -> None:
    """Set what configurations say about a forward as running block by block needs it, whatever config.json has."""
    wanted = {
        "use_cache": False,
        "return_dict": True,
        "output_hidden_states": False,
        "output_attentions": False,
        # RWKV halves its hidden states every few blocks and its weights to match: powers of two, for fp16's range only.
        "rescale_every": 0,
    }
    for config in {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }.values():
        for name, value in wanted.items():
            if getattr(config, name, value) != value:
                setattr(config, name, value)
