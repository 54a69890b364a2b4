"""Where the tasks of a study run: in this process, or in worker processes of this machine that may die."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from secateur.studies.tasks import Outcome, Task, perform

Perform = Callable[[Task, Path, Callable[[str], None]], Outcome]
Tell = Callable[[str], None]


class Pool(Protocol):
    """``start`` a task where there is ``room``; ``wait`` for the next one to end, whichever it is."""

    @property
    def room(self) -> bool: ...

    def start(self, task: Task) -> None: ...

    def wait(self) -> tuple[Task, Outcome]: ...

    def close(self) -> None: ...


class InlinePool:
    """No other process: a task runs when it is waited for."""

    def __init__(self, store: Path, tell: Tell, work: Perform = perform) -> None:
        self.store, self.tell, self.work = store, tell, work
        self._tasks: deque[Task] = deque()

    @property
    def room(self) -> bool:
        return not self._tasks

    def start(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> tuple[Task, Outcome]:
        task = self._tasks.popleft()
        return task, self.work(task, self.store, self.tell)

    def close(self) -> None:
        pass


@dataclass
class _Worker:
    process: Any
    connection: Connection
    task: Task | None = None


class ProcessPool:
    """``workers`` spawned processes with ``threads`` each. One that dies fails only the task it had, and is replaced."""

    def __init__(self, workers: int, threads: int, store: Path, tell: Tell, work: Perform = perform) -> None:
        self.size, self.threads = workers, threads
        self.store, self.tell, self.work = store, tell, work
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []

    @property
    def room(self) -> bool:
        return sum(worker.task is not None for worker in self._workers) < self.size

    def start(self, task: Task) -> None:
        idle = next((worker for worker in self._workers if worker.task is None), None) or self._open()
        idle.task = task
        with suppress(OSError):  # it died meanwhile: its sentinel will tell
            idle.connection.send(task)

    def wait(self) -> tuple[Task, Outcome]:
        while True:
            busy = [worker for worker in self._workers if worker.task is not None]
            wait([handle for worker in busy for handle in (worker.connection, worker.process.sentinel)])
            for worker in busy:
                ended = self._ended(worker)
                if ended is not None:
                    return ended

    def _ended(self, worker: _Worker) -> tuple[Task, Outcome] | None:
        """The task that a worker has done, or died of. What it had to say before is handed on."""
        task = worker.task
        assert task is not None
        alive = worker.process.is_alive()
        try:
            while worker.connection.poll():
                found = worker.connection.recv()
                if isinstance(found, Outcome):
                    worker.task = None
                    return task, found
                self.tell(found)
        except (EOFError, OSError):  # it hung up
            alive = False
        if alive:
            return None
        worker.process.join()
        self._workers.remove(worker)
        return task, Outcome(error=_death(worker.process.exitcode), died=True)

    def _open(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self.work, self.store, self.threads)
        before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS",)}
        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # read when torch is first imported, in the new process
        try:
            process = self._context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        """End the processes; what they were doing goes on from its journals next time."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if -code == signal.SIGKILL:
            return (
                "Its worker process was killed (SIGKILL), as Linux does when memory runs out. Take fewer --workers, a smaller "
                "pruning.batch_size, or set pruning.activation_gib; the same command tries it again."
            )
        return f"Its worker process was ended by {name}; the same command tries it again."
    return f"Its worker process ended by itself (exit code {code}); the same command tries it again."


def _serve(connection: Connection, work: Perform, store: Path, threads: int) -> None:
    """What a worker process does, until the other side hangs up."""
    import torch

    from secateur.models.loading import quiet_transformers

    Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out the work
    torch.set_num_threads(threads)
    quiet_transformers()
    with suppress(EOFError, OSError):
        while True:
            connection.send(work(connection.recv(), store, connection.send))


def _leave_with_parent() -> None:
    """End this process when the one that hands out the work is gone, however it went: nobody would take the outcome."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
