"""What this machine has to share out."""

from __future__ import annotations

import os
from pathlib import Path

from secateur.pipeline.provenance import machine_memory


def threads_for(workers: int) -> int:
    """Threads of each of ``workers`` processes: the cores shared out, or what ``OMP_NUM_THREADS`` asks for if that is less."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, min(cores() // workers, int(asked) if asked.isdigit() else cores()))


def cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that can be had without swapping; where the system does not say, all there are."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return machine_memory()
