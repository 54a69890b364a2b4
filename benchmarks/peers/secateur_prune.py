"""Secateur's pruning phase, timed; afterwards the machine's matrix rate at the model's own sizes, in the same process.

    python secateur_prune.py REQUEST.json

Timed is one call of ``prune_blocks``: blocks read from the checkpoint one by one, statistics, pruning, pruned weights
written into the copy of the checkpoint and synced. Not timed: imports, the empty model, and copying the checkpoint.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from measuring import Moment, Phases, Request, Stopwatch, now, report
from torch import Tensor

from secateur.allocation.uniform import Uniform
from secateur.journal import Journal
from secateur.masks import parse_pattern
from secateur.methods import METHODS
from secateur.models.batches import make_batches
from secateur.models.capture import Activations
from secateur.models.checkpoint import Checkpoint
from secateur.models.hidden import HiddenStates
from secateur.models.skeleton import Skeleton
from secateur.models.stored import StoredParameters
from secateur.pruning import loop
from secateur.pruning.loop import Job, Setting
from secateur.pruning.plan import PruningPlan, plan_pruning
from secateur.pruning.records import BlockJournal
from secateur.statistics import InputStatistics

MULTIPLICATIONS = 5


def time_phases(phases: Phases, jobs: list[Job]) -> None:
    """Put timers around the parts of ``prune_blocks``; of several jobs each has a solving and a saving phase of its own.

    In lockstep the forwards of all batches take turns in coroutines; none of the inner functions timed runs in one.
    """
    numbers = {id(part): number for number, job in enumerate(jobs) for part in (job.plan, job.output)}
    suffix = {key: f" {number}" if len(jobs) > 1 else "" for key, number in numbers.items()}
    for function in ("capture", "collect", "prune_in_lockstep"):
        phases.wrap(loop, function, "forward")
    phases.wrap(Activations, "advance", "forward")
    phases.wrap(InputStatistics, "update", "statistics")

    def solve(*arguments: object) -> str:
        return f"solve{suffix[next(id(one) for one in arguments if isinstance(one, PruningPlan))]}"

    phases.wrap(loop, "prune_linear", solve)
    for function in ("load_block", "load_outside"):
        phases.wrap(Skeleton, function, "load")
    # What a job reads to prune it again is part of that job's cost when there are several.
    phases.wrap(Checkpoint, "read", lambda *_: phases.inside if len(jobs) > 1 and "solve" in phases.inside else "load")
    for function in ("write", "flush"):
        phases.wrap(StoredParameters, function, lambda output, *_: f"save{suffix[id(output)]}")


def matrix_seconds(skeleton: Skeleton, rows: int, dtype: torch.dtype) -> dict[str, Moment]:
    """Seconds of one product ``[rows, in] x [in, out]`` for each size ``"inxout"`` in a block, the best of some."""
    found: dict[str, Moment] = {}
    for linear in skeleton.linears(0):
        key = f"{linear.inputs}x{linear.outputs}"
        if key not in found:
            inputs, weight = torch.randn(rows, linear.inputs).to(dtype), torch.randn(linear.outputs, linear.inputs)
            found[key] = _product_seconds(inputs, weight.to(dtype))
    return found


@torch.inference_mode()
def _product_seconds(inputs: Tensor, weight: Tensor) -> Moment:
    times = []
    for _ in range(MULTIPLICATIONS + 1):  # the first one warms up
        started = now()
        torch.nn.functional.linear(inputs, weight)
        times.append(now().since(started))
    return Moment(min(t.wall for t in times[1:]), min(t.cpu for t in times[1:]))


def make_jobs(skeleton: Skeleton, request: Request) -> list[Job]:
    """One job for each configuration, each with its copy of the model."""
    asked = request.configurations or [(request.method, request.sparsity, request.pattern)]
    jobs = []
    for number, (method, sparsity, pattern) in enumerate(asked):
        plan = plan_pruning(skeleton, METHODS.load(method)(), parse_pattern(pattern), sparsity, Uniform())
        folder = Path(request.out) / f"model-{number}"
        output = skeleton.stored.copy_to(folder)
        jobs.append(Job(plan, output, BlockJournal(Journal(folder / "pruning.jsonl"))))
    return jobs


def main() -> None:
    request, phases = Request.read(), Phases()
    skeleton = Skeleton(Path(request.model))
    batches = make_batches(request.tokens().tolist(), request.batch)
    jobs = make_jobs(skeleton, request)
    linears = [linear for index in range(len(skeleton.blocks)) for linear in skeleton.linears(index)]
    names = {size.name for size in jobs[0].plan.sizes}
    places = {linear.name: linear.weight for linear in linears if linear.name in names}
    time_phases(phases, jobs)
    setting = Setting(request.propagation, HiddenStates())  # pyright: ignore[reportArgumentType]
    with Stopwatch(phases) as clock:
        loop.prune_blocks(skeleton, jobs, batches, setting)
    weights = ((name, jobs[0].output.read(place)) for name, place in places.items()) if len(jobs) == 1 else ()
    rows = batches[0].ids.numel()
    products = {key: moment._asdict() for key, moment in matrix_seconds(skeleton, rows, skeleton.dtype).items()}
    report(
        request, clock, weights, dtype=str(skeleton.dtype), version=version("secateur"),
        product_rows=rows, products=products,
    )  # fmt: skip


if __name__ == "__main__":
    main()
