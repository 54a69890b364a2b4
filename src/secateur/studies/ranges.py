"""How far apart labels are, and how far beyond what seeds alone would make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from secateur.studies.intervals import Estimate, expected_range, jackknife


def noise(values: np.ndarray) -> float | None:
    """The range expected of labels that do not differ, of ``values`` ``[seeds, labels]``: that of so many normal values of
    the residual standard deviation (label and seed means removed). ``None`` where there is one seed or one label."""
    if values.ndim != 2 or min(values.shape) < 2:
        return None
    left = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    spread = float((left**2).sum() / ((values.shape[0] - 1) * (values.shape[1] - 1))) ** 0.5
    return spread * expected_range(values.shape[1])


def beyond_noise(values: np.ndarray) -> float:
    """The square of the mean range over labels of ``values`` ``[seeds, labels]`` less that of the noise.

    Below zero where labels differ less than noise would make them: a value cut off at zero, or its root, would be above
    zero on average where nothing differs.
    """
    return float(np.ptp(values, axis=1).mean()) ** 2 - (noise(values) or 0.0) ** 2


def over_settings(grids: Sequence[Mapping[int, np.ndarray]], statistic: Callable[[int, np.ndarray], float]) -> Estimate:
    """The mean over settings of ``statistic(place, values)``, with the jackknife's interval over the seeds that all of them
    have. ``grids``: of each setting its values by seed, which ``values`` has along its first axis; empty ones are left out."""
    known = [(place, grid) for place, grid in enumerate(grids) if grid]
    shared = sorted(set.intersection(*(set(grid) for _, grid in known))) if known else []

    def mean(chosen: np.ndarray) -> float:
        values = ((place, np.array([grid[int(seed)] for seed in chosen])) for place, grid in known)
        return sum(statistic(place, one) for place, one in values) / len(known)

    return jackknife(mean, np.array(shared))
