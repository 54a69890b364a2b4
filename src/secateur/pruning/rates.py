"""How fast this machine is at what pruning does, measured in about a second on matrices like the model's."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from secateur.pruning.plan import PruningPlan
from secateur.pruning.trace import LinearTrace
from secateur.statistics import InputStatistics, Statistic

ROWS, OUTPUTS, WIDTH, SOLVED = 512, 1024, 2048, 768  # measured on no more than that
FILE_BYTES = 64 * 2**20
SECONDS_A_PROBE = 0.4


@dataclass(frozen=True)
class Rates:
    """``linear``: seconds a row of a linear's product, by outputs, inputs and rows. ``statistics``: seconds a row, by inputs.
    ``attention``, ``products``: FLOP/s of attention in the model's dtype and of fp32 products. ``moving``, ``moving_fp32``:
    bytes/s read and written by element-wise work. ``solve``, ``shared``: seconds the method really takes by seconds its
    ``cost`` says; ``warming``: seconds its first solve in a process takes longer. ``writing``, ``reading``: bytes/s of the
    disk (a file just written is read from memory)."""

    linear: dict[tuple[int, int, int], float] = field(default_factory=dict)
    statistics: dict[int, float] = field(default_factory=dict)
    attention: float = 1e11
    products: float = 1e11
    moving: float = 1e10
    moving_fp32: float = 1e10
    solve: float = 1.0
    shared: float = 1.0
    warming: float = 0.0
    writing: float = 1e9
    reading: float = 1e9


def measure(
    device: torch.device,
    dtype: torch.dtype,
    linears: Sequence[LinearTrace],
    plan: PruningPlan,
    kinds: Sequence[type[Statistic]],
    place: Path,
) -> Rates:
    """Measure this machine, now, for ``linears`` (their shapes count), the plan's method, and the disk of ``place``."""
    shapes = sorted({(linear.outputs, linear.inputs, linear.rows) for linear in linears})
    widths = {linear.inputs: linear.rows for linear in linears}
    with torch.inference_mode():
        products, moving_fp32 = _products(device), _moving(device, torch.float32)
        widest = max(widths)
        outputs = max(outputs for outputs, _, _ in shapes)
        solve, shared, warming = _solve_factors(device, plan, outputs, widest, products, moving_fp32)
        writing, reading = _disk(place)
        return Rates(
            linear={
                (outputs, inputs, rows): _linear(device, dtype, outputs, inputs, rows)
                for outputs, inputs, rows in shapes
            },
            statistics={width: _statistics(device, dtype, width, rows, kinds) for width, rows in widths.items()},
            attention=_attention(device, dtype, max(linear.rows for linear in linears)),
            products=products,
            moving=moving_fp32 if dtype == torch.float32 else _moving(device, dtype),
            moving_fp32=moving_fp32,
            solve=solve,
            shared=shared,
            warming=warming,
            writing=writing,
            reading=reading,
        )


def _seconds(device: torch.device, work: Callable[[], object], least: float = 0.02) -> float:
    """What ``work`` takes once warm: the median of some runs."""
    found: list[float] = []
    _once(device, work)
    while len(found) < 3 or (sum(found) < least and len(found) < 50):
        found.append(_once(device, work))
        if sum(found) > SECONDS_A_PROBE:
            break
    return sorted(found)[len(found) // 2]


def _once(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds; on one thread of a processor those it computed, so that other work does not count."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(clock() - started, 1e-9)


def _linear(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int, rows: int) -> float:
    few, part = min(rows, ROWS), min(outputs, OUTPUTS)
    weight = torch.randn(part, inputs, device=device).to(dtype)
    x = torch.randn(few, inputs, device=device).to(dtype)
    return _seconds(device, lambda: torch.nn.functional.linear(x, weight)) / few * outputs / part


def _products(device: torch.device) -> float:
    n = 768
    one = torch.randn(n, n, device=device)
    return 2 * n**3 / _seconds(device, lambda: one @ one)


def _moving(device: torch.device, dtype: torch.dtype) -> float:
    one, other = (torch.randn(2**21, device=device).to(dtype) for _ in range(2))
    return 5 * one.nbytes / _seconds(device, lambda: torch.nn.functional.silu(one).mul_(other))


def _attention(device: torch.device, dtype: torch.dtype, rows: int) -> float:
    heads, length, width = 4, min(rows, ROWS), 64
    q = torch.randn(1, heads, length, width, device=device).to(dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    return 2 * q.numel() * length / _seconds(device, lambda: attend(q, q, q, is_causal=True))


def _statistics(
    device: torch.device, dtype: torch.dtype, width: int, rows: int, kinds: Sequence[type[Statistic]]
) -> float:
    """Seconds a row of all statistics together; beyond ``WIDTH`` inputs they are scaled up."""
    narrow, few = min(width, WIDTH), min(rows, ROWS)
    x = torch.randn(few, narrow, device=device).to(dtype)
    total = 0.0
    for kind in kinds:
        found = kind(narrow, device)
        growth = 2 if any(held.ndim == 2 for held in found.sums()) else 1
        total += _seconds(device, lambda found=found: found.update(x)) / few * (width / narrow) ** growth
    return total


def _solve_factors(
    device: torch.device, plan: PruningPlan, outputs: int, inputs: int, products: float, moving: float
) -> tuple[float, float, float]:
    """Run the method on a small random linear: what it takes by what its cost says, for each linear and for what linears
    with one input share; and what its first run took longer than the next."""
    method = plan.method
    cost = method.cost()
    unit = plan.pattern.group or 1
    width = min(inputs, SOLVED) // unit * unit
    while width > 128 and cost.seconds(width, width, products, moving) > SECONDS_A_PROBE:
        width = width // 2 // unit * unit
    rows = min(outputs, width)
    stats = InputStatistics(kind(width, device) for kind in method.statistics())
    if method.statistics():
        stats.update(torch.randn(2 * width, width, device=device))
    weight = torch.randn(rows, width, device=device)

    def prune() -> None:
        method.prune(weight, stats, plan.pattern.at(plan.sparsity), plan.sparsity)

    warming = _once(device, prune)
    for statistic in stats:
        statistic.merged(statistic.tokens)  # forgets what was derived
    first = _once(device, prune)
    again = min(_once(device, prune) for _ in range(2))
    expected, shared = cost.seconds(rows, width, products, moving), cost.shared_seconds(width, products)
    factor = max(first - again, 0.0) / shared if shared else 1.0
    return again / max(expected, 1e-9), factor, max(warming - first, 0.0)


def _disk(place: Path) -> tuple[float, float]:
    """Bytes/s of writing (to the disk, not its cache) and of reading back, in the nearest folder there is."""
    folder = place.absolute()
    while not folder.is_dir():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    data = memoryview(bytes(FILE_BYTES))
    with suppress(OSError), tempfile.NamedTemporaryFile(prefix=".forecast-", dir=folder) as file:
        started = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        writing = FILE_BYTES / (time.perf_counter() - started)
        with Path(file.name).open("rb", buffering=0) as stream:
            read = _once(torch.device("cpu"), lambda: stream.readinto(bytearray(FILE_BYTES)))
        return writing, FILE_BYTES / read
    return 1e9, 1e9
