"""Random projection that keeps inner products, without a matrix in memory."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

ENTRIES = 2**24
"""Entries of the random matrix that exist at a time; also decides where its slices begin."""


def stream_seed(*parts: object) -> int:
    """A seed of its own for each purpose."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def project(rows: Tensor, dimensions: int, seed: int, name: str) -> Tensor:
    """``rows`` ``[n, width]`` fp32 times ``[width, dimensions]`` of ``±1/sqrt(dimensions)``, drawn by ``seed`` and ``name``.

    The signs are drawn on the CPU, slice by slice and anew in each call, so they are the same on every device.
    Cost: O(n · width · dimensions). Source: Achlioptas 2003; as in TRAK, Park et al. 2023, arXiv 2303.14186.
    """
    found = torch.zeros(len(rows), dimensions, device=rows.device)
    for number, part in enumerate(rows.split(max(1, ENTRIES // dimensions), dim=1)):
        rng = np.random.default_rng(stream_seed(seed, name, number))
        entries = part.shape[1] * dimensions
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-entries // 8)), dtype=np.uint8), count=entries)
        signs = torch.from_numpy(bits).to(rows.device).view(part.shape[1], dimensions).float().mul_(2).sub_(1)
        found += part @ signs
    return found / dimensions**0.5
