"""What a manifest says about the run: versions, hardware, seconds and peak memory per phase."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")


class Phases:
    """Seconds and peak memory of named phases. Where Linux allows it, the peak is that of the phase alone; elsewhere
    that of the process so far."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        _reset_peak()
        started = time.perf_counter()
        try:
            yield
        finally:
            entry = {"seconds": round(time.perf_counter() - started, 3), "peak_mib": round(peak_memory() / 2**20, 1)}
            if torch.cuda.is_available():
                entry["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            self.found[name] = entry


def peak_memory() -> int:
    """Highest resident memory in bytes since the process started, or since ``_reset_peak`` where that works."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_memory() -> int:
    """Bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def environment() -> dict[str, Any]:
    """When, by which versions and on which hardware."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "secateur": _version("secateur"),
        "commit": _commit(),
        "libraries": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree this runs from; ``None`` for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    with suppress(OSError):
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or None
    return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
