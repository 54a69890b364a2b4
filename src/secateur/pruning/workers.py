"""Data-parallel pruning with torch.distributed: each process runs its share of the samples, all see all statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from secateur.errors import SecateurError, UsageError
from secateur.statistics import InputStatistics

Item = TypeVar("Item")
Made = TypeVar("Made")

PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be generating text for hours. One that died is noticed at once."""


@dataclass(frozen=True)
class Workers:
    """This process among ``size`` that prune one model together, ``rank`` counted from 0. One alone by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def start(cls, device: str) -> Workers:
        """Join the others if this process was launched by torchrun: NCCL between GPUs, gloo between CPUs."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if not dist.is_initialized():
            if device.startswith("cuda"):
                torch.cuda.set_device(device)  # where NCCL keeps what it broadcasts
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def stop() -> None:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @staticmethod
    def first_to_fail() -> bool:
        """Whether no other process has asked this before: the one that is told so says what went wrong, once for all."""
        if not (dist.is_available() and dist.is_initialized()):
            return os.environ.get("RANK", "0") == "0"
        return dist.distributed_c10d._get_default_store().add("secateur/failed", 1) == 1

    def portion(self, items: Sequence[Item]) -> list[Item]:
        """This process's share of ``items``: every ``size``-th. Raises ``UsageError`` when there are too few for all."""
        if len(items) < self.size:
            raise UsageError(
                f"{self.size} processes cannot share {len(items)} calibration batches. Launch fewer processes, or lower "
                "pruning.batch_size."
            )
        return list(items[self.rank :: self.size])

    def reduce(self, statistics: Iterable[InputStatistics]) -> None:
        """Add up the statistics of all processes, each object once, so that every process has the same totals."""
        if self.size == 1:
            return
        with _others_alive():
            for stats in {id(stats): stats for stats in statistics}.values():
                for statistic in stats:
                    for tensor in statistic.sums():
                        dist.all_reduce(tensor)
                    tokens = torch.tensor([statistic.tokens], dtype=torch.float64, device=statistic.device)
                    dist.all_reduce(tokens)
                    statistic.merged(tokens.item())

    def once(self, make: Callable[[], Made], number: int = 0) -> Made:
        """``make()`` in one process, chosen by ``number``; all get what it made, or raise what it raised."""
        if self.size == 1:
            return make()
        owner = number % self.size
        found: list[Any] = [None]
        if self.rank == owner:
            try:
                found = [make()]
            except Exception as error:  # the others must not wait for what will never come
                found = [error]
        with _others_alive():
            dist.broadcast_object_list(found, src=owner)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def meet(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            with _others_alive():
                dist.barrier()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Turn what torch.distributed raises when the other end is gone into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise SecateurError(
            "Another of the processes that prune together ended before its time; what it said is the reason. Launch the "
            f"same command again to go on from the last block. (torch.distributed: {str(error).splitlines()[0][:160]})"
        ) from error
