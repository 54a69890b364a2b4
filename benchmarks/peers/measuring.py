"""What the benchmarked programs share: clocks, phases, peak memory, and what is said of the pruned weights.

Runs in any virtual environment with torch and safetensors, so it imports nothing of Secateur.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TOKENS, RESULT, MASKS = "tokens.safetensors", "result.json", "masks.safetensors"


class Moment(NamedTuple):
    """Seconds on two clocks: ``wall``, and ``cpu`` of this process and its ended children, all threads."""

    wall: float
    cpu: float

    def since(self, earlier: Moment) -> Moment:
        return Moment(self.wall - earlier.wall, self.cpu - earlier.cpu)


def now() -> Moment:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Moment(perf_counter(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime)


class Phases:
    """Seconds by phase. Time in a phase entered within another counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, Moment] = {}
        self._inside: list[str] = []
        self._since = now()

    @property
    def inside(self) -> str:
        """The phase that is running, or nothing."""
        return self._inside[-1] if self._inside else ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._book()
        self._inside.append(name)
        try:
            yield
        finally:
            self._book()
            self._inside.pop()

    def _book(self) -> None:
        """Put the time since the last call down to the phase that it was spent in."""
        moment = now()
        if self._inside:
            spent, so_far = moment.since(self._since), self.seconds.get(self._inside[-1], Moment(0, 0))
            self.seconds[self._inside[-1]] = Moment(so_far.wall + spent.wall, so_far.cpu + spent.cpu)
        self._since = moment

    def wrap(self, owner: Any, attribute: str, name: str | Callable[..., str]) -> None:
        """Count every call of ``owner.attribute`` (a module's or a class's function) for the phase ``name``, which may
        be computed from the call's arguments."""
        function = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name(*args, **kwargs)):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)


class Stopwatch:
    """Around the pruning: its ``spent`` seconds, seconds by phase, and the process's peak memory at its end (bytes)."""

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self.spent = Moment(0, 0)
        self.by_phase: dict[str, Moment] = {}
        self.peak = 0

    def __enter__(self) -> Stopwatch:
        self._started = now()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = now().since(self._started)
        self.by_phase = dict(self._phases.seconds)
        self.peak = peak_bytes()


@dataclass(frozen=True)
class Request:
    """What a program is asked for. ``model``: folder of a Llama; ``work``: where ``TOKENS`` is; ``out``: for results.

    ``batch`` and ``propagation`` concern Secateur alone; ``configurations`` (method, sparsity, pattern) are pruned in
    one pass if given, in place of the single one.
    """

    model: str
    work: str
    out: str
    method: str
    pattern: str
    sparsity: float
    batch: int = 4
    propagation: str = "block"
    configurations: list[tuple[str, float, str]] = field(default_factory=list)

    @classmethod
    def read(cls) -> Request:
        """The request in the file that the command line names."""
        return cls(**json.loads(Path(sys.argv[1]).read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def tokens(self) -> Tensor:
        """``[samples, length]`` int64."""
        return load_file(Path(self.work) / TOKENS)["tokens"]


def peak_bytes() -> int:
    """Peak resident memory of this process. ``ru_maxrss`` would count the parent's before ``exec``, hence VmHWM."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of all blocks of a Llama, by name, in order."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("model.layers.") and isinstance(module, nn.Linear)
    }


def report(request: Request, clock: Stopwatch, weights: Iterable[tuple[str, Tensor]] = (), **more: object) -> None:
    """Write the result of a run: what ``clock`` saw, and sparsities and masks of ``weights`` (pruned, by name)."""
    result = {
        "wall": clock.spent.wall,
        "cpu": clock.spent.cpu,
        "peak_bytes": clock.peak,
        "phases": {name: moment._asdict() for name, moment in clock.by_phase.items()},
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        **_examine(request, weights),
        **more,
    }
    Path(request.out, RESULT).write_text(json.dumps(result))


def _examine(request: Request, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    group = 0 if request.pattern == "unstructured" else int(request.pattern.partition(":")[2])
    keep = int(request.pattern.partition(":")[0]) if group else 0
    masks, zeros, total, sparsities, bad_groups = {}, 0, 0, [], 0
    for name, weight in weights:
        kept = weight != 0
        zeros, total = zeros + kept.numel() - int(kept.sum()), total + kept.numel()
        sparsities.append(1 - float(kept.float().mean()))
        if group:
            bad_groups += int((kept.reshape(-1, group).sum(dim=1) > keep).sum())
        masks[name] = torch.from_numpy(np.packbits(kept.numpy().reshape(-1)))
    if not masks:
        return {}
    save_file(masks, Path(request.out, MASKS))
    return {
        "sparsity": zeros / total,
        "sparsity_least": min(sparsities),
        "sparsity_most": max(sparsities),
        "bad_groups": bad_groups,
        "weights": total,
    }


def agreement(one: Path, other: Path) -> float:
    """The share of mask entries that two runs' folders have in common."""
    ours, theirs = load_file(one / MASKS), load_file(other / MASKS)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{one} and {other} pruned different linears: {sorted(ours.keys() ^ theirs.keys())[:3]}.")
    bits = sum(8 * mask.numel() for mask in ours.values())
    differing = sum(int(np.unpackbits((ours[name] ^ theirs[name]).numpy()).sum()) for name in ours)
    return 1 - differing / bits
