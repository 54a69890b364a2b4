"""One sample of each kind of thing the samples do inside the model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from secateur.calibration.context import Context
from secateur.calibration.sample import Sample
from secateur.calibration.selection.base import Choice, Selection
from secateur.errors import UsageError

ITERATIONS = 50


@dataclass(frozen=True)
class KMeans(Selection):
    """The sample nearest to each centre of clusters of activations.

    The mean inputs of every block's linears, each of unit length, are concatenated and projected to ``dimensions``;
    k-means with as many clusters as samples are asked (k-means++, the best of ``restarts`` by its sum of squares) gives the
    centres, and each cluster's member nearest to its centre is chosen. For a cluster without members, the sample farthest
    from all that are chosen is. A sample's value is its distance to the nearest centre.
    Cost: one forward a sample of the pool; k-means on ``[pool, dimensions]``.
    Source: stage 3 of COLA, He et al. 2025, arXiv 2510.10618, which pools the MLPs' activations.
    """

    pool: float = 4.0
    dimensions: int = 64
    restarts: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimensions < 1 or self.restarts < 1:
            raise UsageError(
                "The dimensions and restarts of the selection k-means are at least 1; "
                f"found {self.dimensions} and {self.restarts}."
            )

    def choose(self, samples: Sequence[Sample], count: int, context: Context) -> Choice:
        points = np.asarray(context.activations(samples, self.dimensions), dtype=np.float64)
        distances = cdist(points, self._centres(points, count, context.seed))
        nearest = distances.argmin(axis=1)
        own = distances[np.arange(len(points)), nearest]
        chosen = []
        for cluster in range(distances.shape[1]):
            members = np.flatnonzero(nearest == cluster)
            if len(members):
                chosen.append(int(members[own[members].argmin()]))
        return Choice(_filled(points, chosen, count), own.tolist())

    def _centres(self, points: np.ndarray, count: int, seed: int) -> np.ndarray:
        """At most ``count`` centres ``[centres, dimensions]``; the different points themselves when they are no more."""
        distinct = np.unique(points, axis=0)
        if len(distinct) <= count:
            return distinct
        rng = np.random.default_rng(seed)
        found = []
        for _ in range(self.restarts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of empty clusters: they are filled
                centres, _labels = kmeans2(points, count, iter=ITERATIONS, minit="++", rng=rng)
            found.append((float((cdist(points, centres).min(axis=1) ** 2).sum()), centres))
        return min(found, key=lambda one: one[0])[1]


def _filled(points: np.ndarray, chosen: list[int], count: int) -> list[int]:
    """``chosen`` and, up to ``count``, each time the point farthest from all of them."""
    chosen = list(chosen)
    distances = cdist(points, points[chosen]).min(axis=1)
    while len(chosen) < count:
        distances[chosen] = -1.0
        farthest = int(distances.argmax())
        chosen.append(farthest)
        distances = np.minimum(distances, cdist(points, points[[farthest]])[:, 0])
    return chosen
