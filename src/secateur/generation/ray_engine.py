"""Generation on several machines: Ray workers, each with an engine of its own, share the batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.calibration.sample import Sample
from secateur.errors import ModelError, SecateurError, UsageError
from secateur.generation.engine import Engine, EngineSettings, Job, Sampling
from secateur.generation.engines import ENGINES
from secateur.models.loading import settled_dtype
from secateur.settings import make

TRIES = 3
"""How often a batch is begun, when the worker that had it died, until the run is given up."""


@dataclass(frozen=True)
class Ray(EngineSettings):
    """Several machines at once by Ray, each with an engine (extra: ray).

    ``address``: of a running cluster; null: the one RAY_ADDRESS names, else one on this machine alone. ``workers``: how
    many engines; null: one a node, or with GPUs one for every ``gpus`` of them. ``gpus``: of each worker; null: 1 if the
    device is a GPU, else 0. ``engine``: what each worker runs, by name or with its settings beside ``name``.
    The samples are those of that engine alone, whatever the number of workers. Every node needs secateur and the model
    folder at the same path. Cost: the model once a worker.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    engine: dict[str, Any] | str = "transformers"

    def __post_init__(self) -> None:
        gpus = self.gpus or 0.0
        if (self.workers is not None and self.workers < 1) or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise UsageError(
                "The engine ray needs workers >= 1, and gpus a whole number or below 1; found "
                f"{self.workers} and {self.gpus}."
            )
        inner_settings(self.engine)

    @classmethod
    def deciding(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        inner = _named(given.get("engine", cls.engine))
        decided = ENGINES.load(inner["name"]).deciding(inner)
        return decided | {"device": "cuda"} if given.get("gpus") else decided

    def open(self, folder: Path, device: str, dtype: str) -> Engine:
        ray = _ray()
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(
                    f"Ray cannot be reached at {self.address or 'this machine'}: {' '.join(str(error).split())[:300]} "
                    "Start a cluster (ray start --head), or correct calibration.generation.engine.address."
                ) from error
        gpus = self.gpus if self.gpus is not None else float(device.startswith("cuda"))
        workers, cpus = share_out([node["Resources"] for node in ray.nodes() if node["Alive"]], self.workers, gpus)
        remote = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        settings = inner_settings(self.engine)
        there = "cuda" if gpus else "cpu" if device.startswith("cuda") else device
        place = folder.resolve(), there, settled_dtype(dtype, there)  # the same on every worker
        return RayEngine(ray, lambda: remote.remote(settings, *place), workers)


def inner_settings(engine: dict[str, Any] | str) -> EngineSettings:
    """What each worker runs. Raises ``UsageError`` for an unknown name or setting, or for Ray within Ray."""
    given = _named(engine)
    name = given.pop("name", None)
    if name is None or name == "ray":
        raise UsageError(
            f"The engine ray runs another engine on its workers, by name; found {engine!r}. Set "
            "calibration.generation.engine.engine to transformers or vllm."
        )
    return make(ENGINES, name, given)


def _named(engine: dict[str, Any] | str) -> dict[str, Any]:
    return {"name": engine} if isinstance(engine, str) else dict(engine)


def share_out(nodes: Sequence[Mapping[str, float]], workers: int | None, gpus: float) -> tuple[int, int]:
    """How many workers, and how many CPUs each: as many as fit the smallest node with its share of the workers."""
    if gpus:
        fitting = sum(int(node.get("GPU", 0) / gpus + 1e-9) for node in nodes)
        workers = workers or fitting
        if not fitting or workers > fitting:
            raise UsageError(
                f"{workers or 1} Ray workers with {gpus:g} GPUs each were asked for; the cluster has room for {fitting} "
                f"(GPUs by node: {[node.get('GPU', 0) for node in nodes]}). Lower calibration.generation.engine.workers "
                "or gpus."
            )
        return workers, 1
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    workers = workers or len(cores)
    if not cores or workers > sum(cores):
        raise UsageError(
            f"{workers or 1} Ray workers were asked for, but the cluster has {sum(cores)} CPUs; each worker takes one at "
            "least. Lower calibration.generation.engine.workers, or add nodes."
        )
    each = min(cores)
    while sum(core // each for core in cores) < workers:
        each -= 1
    return workers, each


class Worker:
    """What Ray runs in a process of its own: one engine, opened once."""

    def __init__(self, settings: EngineSettings, folder: Path, device: str, dtype: str) -> None:
        self.settings, self.place = settings, (folder, device, dtype)

    def open(self) -> list[int]:
        """Load the model; returns its end tokens."""
        import socket

        from secateur.models.loading import quiet_transformers

        folder, device, dtype = self.place
        if not folder.is_dir():
            raise ModelError(
                f"The model folder {folder} is not there on the node {socket.gethostname()}. Ray's workers read the model "
                "themselves: put it where every node sees it under the same path."
            )
        quiet_transformers()
        self.engine = self.settings.open(folder, device, dtype)
        return self.engine.end_tokens

    def call(self, what: str, *arguments: Any) -> Any:
        return getattr(self.engine, what)(*arguments)

    def work(self, work: Callable[[Engine, Any], list[Sample]], job: Any) -> list[Sample]:
        return work(self.engine, job)


class RayEngine(Engine):
    """Workers made by ``make``; those that die are replaced, and what they had is done again."""

    def __init__(self, ray: Any, make: Callable[[], Any], workers: int) -> None:
        self.ray, self.make = ray, make
        self.workers = [make() for _ in range(workers)]
        opened = [worker.open.remote() for worker in self.workers]
        ends = [self._result(ref, "The model was to be loaded by a Ray worker") for ref in opened]
        self.end_tokens: list[int] = ends[0]

    def generate(
        self, prompts: Sequence[Sequence[int]], length: int, sampling: Sampling, seed: int, each: bool = False
    ) -> list[Sample]:
        return next(self._run([("call", ("generate", [list(ids) for ids in prompts], length, sampling, seed, each))]))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        return next(self._run([("call", ("score", [list(ids) for ids in sequences]))]))

    def spread(self, work: Callable[[Engine, Job], list[Sample]], jobs: Sequence[Job]) -> Iterator[list[Sample]]:
        sent = self.ray.put(work)
        return self._run([("work", (sent, job)) for job in jobs])

    def _run(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterator[Any]:
        """The results of the calls, in their order, each worker taking the next one when it is free."""
        waiting, idle = deque(range(len(calls))), deque(range(len(self.workers)))
        tries, done = [0] * len(calls), dict[int, Any]()
        running: dict[Any, tuple[int, int]] = {}
        for number in range(len(calls)):
            while number not in done:
                while waiting and idle:
                    call, worker = waiting.popleft(), idle.popleft()
                    what, arguments = calls[call]
                    tries[call] += 1
                    running[getattr(self.workers[worker], what).remote(*arguments)] = call, worker
                ref = self.ray.wait(list(running), num_returns=1)[0][0]
                call, worker = running.pop(ref)
                try:
                    done[call] = self._answer(ref)
                except self.ray.exceptions.RayError as error:
                    if tries[call] >= TRIES:
                        raise self._given_up(
                            f"Batch {call + 1} of {len(calls)} was begun {TRIES} times", error
                        ) from error
                    waiting.appendleft(call)
                    self._replace(worker)
                idle.append(worker)
            yield done.pop(number)

    def _replace(self, worker: int) -> None:
        self.workers[worker] = self.make()
        self._result(self.workers[worker].open.remote(), "A Ray worker died, and so did the one in its place")

    def _result(self, ref: Any, what: str) -> Any:
        try:
            return self._answer(ref)
        except self.ray.exceptions.RayError as error:
            raise self._given_up(what, error) from error

    def _answer(self, ref: Any) -> Any:
        """What a worker returned; what it raised is raised as it was there. Raises ``RayError`` when the worker is lost."""
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SecateurError):
                raise error.cause from None
            raise RuntimeError(f"A Ray worker failed:\n{error}") from error

    @staticmethod
    def _given_up(what: str, error: Exception) -> UsageError:
        return UsageError(
            f"{what}, and each time its worker died; the last: {' '.join(str(error).split())[:300]} If memory ran out, take "
            "fewer workers (calibration.generation.engine.workers) or a smaller calibration.generation.batch_size."
        )


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(
            f"The engine ray needs Ray, which cannot be imported here ({error}); install it with pip install ray, or use "
            "calibration.generation.engine=transformers."
        ) from error
    return ray
