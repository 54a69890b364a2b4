"""What a block does with one batch of calibration data, found by running the model on tensors that have no storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secateur.models.experts import experts_at
from secateur.models.paused import Call
from secateur.models.skeleton import Skeleton
from secateur.models.structure import find_linears, is_linear
from secateur.pruning.rehearsal import expert_share, rehearse


@dataclass
class LinearTrace:
    """One call of a linear: the ``source`` number is the same for linears called with the same tensor. ``rows``: tokens it
    sees in a batch. ``live``: bytes the block holds as it is called, its input included; ``moved`` as in ``BlockTrace``, so
    far."""

    name: str
    outputs: int
    inputs: int
    rows: int
    source: int
    live: int
    moved: float


@dataclass
class BlockTrace:
    """One block over one batch. ``linears`` in the order of their calls. ``flops``: of matrix products outside linears
    (attention). ``moved``: bytes that all other operations read and write. ``peak``: most bytes held at once, the hidden
    states that came in included, weights not; ``largest``: bytes of the largest tensor."""

    linears: list[LinearTrace] = field(default_factory=list)
    flops: float = 0.0
    moved: float = 0.0
    peak: int = 0
    largest: int = 0


def trace_blocks(skeleton: Skeleton, batch: int, length: int) -> list[BlockTrace]:
    """Run the model of ``skeleton`` on ``batch`` sequences of ``length`` tokens without storage, and note what each block does.

    Experts are assumed to get equal shares of the tokens. A model that cannot run so is taken to be its linears: each
    called with an input of its own unless names and widths say that it is shared.
    """

    def run(index: int, block: nn.Module, call: Call) -> tuple[Any, BlockTrace]:
        recorder = _Recorder(call)
        names = {linear.module: linear.name for linear in find_linears(block, f"{skeleton.prefix}.{index}", index)}
        with _watched(block, names, recorder), recorder, _PlainAttention(recorder):
            return block(*call.args, **call.kwargs), recorder.trace

    made = rehearse(skeleton, batch, length, run)
    if made is not None:
        return [made.get(index, BlockTrace()) for index in range(len(skeleton.blocks))]
    mixtures = [experts for module in skeleton.model.modules() for experts in experts_at(module)]
    share = expert_share(skeleton.model, mixtures)
    return [_from_names(skeleton, index, batch * length, share) for index in range(len(skeleton.blocks))]


@contextmanager
def _watched(block: nn.Module, names: dict[nn.Module, str], recorder: _Recorder) -> Iterator[None]:
    handles = []
    for module in {*names, *filter(is_linear, block.modules())}:
        handles.append(module.register_forward_pre_hook(recorder.before(names.get(module))))
        handles.append(module.register_forward_hook(recorder.after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    """Counts what every operation inside a block computes, moves and holds."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.trace = BlockTrace()
        self._in_linear = False
        self._live: dict[int, int] = {}
        self._sources: list[Tensor] = []
        entering = [leaf for leaf in call.leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self._hold(max(entering, key=lambda leaf: leaf.nbytes))

    def before(self, name: str | None) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._in_linear = True
            inputs = args[0]
            weight = module.weight
            assert isinstance(weight, Tensor)
            width = inputs.shape[-1]
            rows, outputs = inputs.numel() // max(width, 1), weight.numel() // max(width, 1)
            if name is None:
                self.trace.flops += 2.0 * rows * width * outputs
                return
            known = [number for number, source in enumerate(self._sources) if source is inputs]
            if not known:
                self._sources.append(inputs)
            source = known[0] if known else len(self._sources) - 1
            live = sum(self._live.values())
            self.trace.linears.append(LinearTrace(name, outputs, width, rows, source, live, self.trace.moved))

        return hook

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_linear = False

    def attention(self, flops: float) -> None:
        self.trace.flops += flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._hold(tensor)
        if self._in_linear or func.is_view:
            return output
        packet = getattr(func, "_overloadpacket", None)
        if packet in flop_registry:
            self.trace.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=output)
        else:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.trace.moved += sum(tensor.nbytes for tensor in (*read, *made))
        return output

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self.trace.largest = max(self.trace.largest, storage.nbytes())
            weakref.finalize(storage, self._live.pop, key, None).atexit = False
            self.trace.peak = max(self.trace.peak, sum(self._live.values()))


class _PlainAttention(TorchFunctionMode):
    """Attention as one operation that holds no matrix of scores, as the fused kernels do."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        # Causal kernels skip about half of the scores.
        self._recorder.attention(query.numel() * key.shape[-2] * (1 + value.shape[-1] / query.shape[-1]))
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _from_names(skeleton: Skeleton, index: int, tokens: int, share: float) -> BlockTrace:
    """A block taken to be its linears one after another."""
    found, sources = BlockTrace(), {}
    for linear in skeleton.linears(index):
        rows = max(1, round(tokens * share)) if linear.experts is not None else tokens
        parent, _, leaf = linear.name.rpartition(".")
        kind = next((kind for kind in ("qkv", "gate up w1 w3") if any(part in leaf for part in _parts(kind))), leaf)
        source = sources.setdefault((parent, kind, linear.inputs), len(sources))
        live = rows * (linear.inputs + 2 * linear.outputs) * skeleton.dtype.itemsize
        found.moved += 8.0 * rows * linear.inputs * skeleton.dtype.itemsize
        found.linears.append(LinearTrace(linear.name, linear.outputs, linear.inputs, rows, source, live, found.moved))
        found.peak = max(found.peak, 2 * live)
        found.largest = max(found.largest, rows * max(linear.inputs, linear.outputs) * skeleton.dtype.itemsize)
    return found


def _parts(kind: str) -> list[str]:
    return [f"{letter}_" for letter in kind] if kind == "qkv" else kind.split()
