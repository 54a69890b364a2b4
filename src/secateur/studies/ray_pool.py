"""Where the tasks of a study run: as Ray tasks, on one machine or many."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import UsageError
from secateur.studies.pool import Perform
from secateur.studies.tasks import Outcome, Task, perform
from secateur.studies.workers import SHARE

TRIES = 3
"""How often a task is begun, when the worker or node that had it died, until it counts as failed."""
LOCAL = "local"


class RayPool:
    """Tasks on a Ray cluster, one CPU's share of a node each. Those whose worker or node dies are begun again elsewhere.

    ``address``: of a running cluster, or ``local`` for one on this machine. Every node needs secateur, and sees the store and
    the model under the same paths. ``workers``: tasks at once; ``None``: as many as CPUs and memory allow, where one takes
    ``needed`` bytes.
    """

    def __init__(
        self,
        address: str,
        workers: int | None,
        store: Path,
        tell: Callable[[str], None],
        work: Perform = perform,
        needed: int = 0,
    ) -> None:
        self.ray = ray = _ray()
        self.store, self.tell, self.work = store.resolve(), tell, work
        self._mine = not ray.is_initialized()
        if self._mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address=None if address == LOCAL else address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(
                    f"Ray cannot be reached at {address}: {' '.join(str(error).split())[:300]} Start a cluster (ray start "
                    "--head), or give --ray local."
                ) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        self.size, self._threads = shared_out(nodes, workers, needed)
        self._remote = ray.remote(_run).options(num_cpus=self._threads, max_retries=0, scheduling_strategy="SPREAD")
        self._running: dict[Any, tuple[Task, int]] = {}

    @property
    def room(self) -> bool:
        return len(self._running) < self.size

    def start(self, task: Task, tries: int = 1) -> None:
        ref = self._remote.remote(self.work, task, str(self.store), self._threads)
        self._running[ref] = task, tries

    def wait(self) -> tuple[Task, Outcome]:
        while True:
            ref = self.ray.wait(list(self._running), num_returns=1)[0][0]
            task, tries = self._running.pop(ref)
            try:
                told, outcome = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:300]
                if tries < TRIES:
                    self.tell(f"A Ray worker was lost ({reason[:120]}); its task is begun again.")
                    self.start(task, tries + 1)
                    continue
                return task, Outcome(
                    error=f"It was begun {TRIES} times on Ray, and each time lost: {reason}", died=True
                )
            for text in told:
                self.tell(text)
            return task, outcome

    def close(self) -> None:
        for ref in self._running:
            self.ray.cancel(ref, force=True)
        self._running.clear()
        if self._mine:
            self.ray.shutdown()


def shared_out(nodes: Sequence[Mapping[str, float]], workers: int | None, needed: int) -> tuple[int, int]:
    """How many tasks at once, and how many CPUs each: as many as still fit the nodes, which are told by their resources."""
    cpus = [int(node["CPU"]) for node in nodes] or [1]
    if workers is None:
        room = [
            int(SHARE * node.get("memory", 0) / needed) if needed else count
            for node, count in zip(nodes, cpus, strict=True)
        ]
        workers = sum(max(1, min(pair)) for pair in zip(cpus, room or [1], strict=True))
    each = max(cpus)
    while each > 1 and sum(count // each for count in cpus) < workers:
        each -= 1
    return workers, each


def _run(work: Perform, task: Task, store: str, threads: int) -> tuple[list[str], Outcome]:
    """What runs on a node: the notes and the outcome."""
    import socket

    import torch

    from secateur.models.loading import quiet_transformers

    torch.set_num_threads(threads)
    quiet_transformers()
    if not Path(store).is_dir():
        return [], Outcome(
            error=f"The store {store} is not there on the node {socket.gethostname()}. Put it where every node sees it under "
            "the same path."
        )
    told: list[str] = []
    return told, work(task, Path(store), told.append)


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(
            f"--ray needs Ray, which cannot be imported here ({error}); install it with pip install ray, or leave --ray out."
        ) from error
    return ray
