"""Balanced k-means: clusters of about equal weight, each point in the nearest one that has room.

Clusters have a capacity, and prices see to it that none has more: whoever is in a cluster that is too full and loses
least by leaving it goes to the next best, and the price of the cluster rises by that. At the end no point could do
better by more than `TOLERANCE` at those prices, which is the mark of the best assignment (complementary slackness), to
the size of one point. Sources: c-BTM (arXiv 2303.14177), 3.1, for balanced k-means; D. Bertsekas, "The auction
algorithm", Annals of Operations Research 14, 1988.

Invariant: no cluster weighs more than `capacity`, and none is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N_STARTS = 4
MOST_ROUNDS = 100
TOLERANCE = 1e-3
"""How much better another cluster may be, as a fraction of the mean cost of all: without one, ties would never end."""


@dataclass(frozen=True)
class Clusters:
    """assigned: cluster of each point, [N]. centroids: [K, C]. distance: of each point from its centroid, [N].

    Cluster 0 is the one nearest to the mean of all points, and so on.
    """

    assigned: Ints
    centroids: Floats
    distance: Floats

    @property
    def n(self) -> int:
        return len(self.centroids)


def capacity(weights: Ints, n: int) -> int:
    """What a cluster weighs at most: its equal share, and as much more as whole points need.

    For points of weight 1 it is the share, rounded up. In general it is less than the share and the heaviest point.
    """
    return int((weights.sum() - n + (n - 1) * weights.max()) // n + 1)


def balanced_kmeans(points_NC: Floats, weights: Ints, n: int, seed: int) -> Clusters:
    """The best of several starts. weights: whole numbers of at least 1; at least `n` points."""
    assert len(points_NC) == len(weights) >= n >= 1, (len(points_NC), len(weights), n)
    assert weights.min() >= 1, f"a weight of {weights.min()}"
    random = _Random(seed)
    found = [_descend(points_NC, weights, _spread(points_NC, weights, n, random)) for _ in range(N_STARTS)]
    _, assigned = min(found, key=lambda item: item[0])
    centroids = _means(points_NC, weights, assigned, n)
    order = np.argsort(((centroids - np.average(points_NC, axis=0, weights=weights)) ** 2).sum(axis=1), kind="stable")
    assigned, centroids = np.argsort(order, kind="stable")[assigned], centroids[order]
    return Clusters(assigned, centroids, np.linalg.norm(points_NC - centroids[assigned], axis=1))


def silhouette(points_NC: Floats, clusters: Clusters) -> Floats:
    """(b - a) / max(a, b) of each point, [N]: a from its own centroid, b from the nearest other one.

    1 well inside, 0 between two, below 0 nearer to another: the simplified silhouette (E. Hruschka et al., 2004).
    """
    distances = np.sqrt(_squares(points_NC, clusters.centroids))
    rows = np.arange(len(points_NC))
    own = distances[rows, clusters.assigned]
    distances[rows, clusters.assigned] = np.inf
    other = distances.min(axis=1)
    larger = np.maximum(own, other)
    inside: Floats = np.divide(other - own, larger, out=np.zeros_like(own), where=larger > 0)
    return inside


def assign(costs_NK: Floats, weights: Ints) -> Ints:
    """The cluster of each point, [N]: least cost per weight under the capacity. Ties by the point's number."""
    n = costs_NK.shape[1]
    most, step = capacity(weights, n), TOLERANCE * float(costs_NK.mean()) + np.finfo(np.float64).tiny
    prices = np.zeros(n)
    assigned = costs_NK.argmin(axis=1)
    load = np.bincount(assigned, weights, minlength=n).astype(np.int64)
    while load.max() > most:
        full = int(load.argmax())
        members = np.flatnonzero(assigned == full)
        offers = costs_NK[members] + prices
        own = offers[:, full].copy()
        offers[:, full] = np.inf
        loss = offers.min(axis=1) - own
        leaving = np.argsort(loss, kind="stable")
        n_leaving = int(np.searchsorted(np.cumsum(weights[members[leaving]]), load[full] - most)) + 1
        leaving = leaving[:n_leaving]
        prices[full] += max(0.0, float(loss[leaving[-1]])) + step
        assigned[members[leaving]] = offers[leaving].argmin(axis=1)
        load = np.bincount(assigned, weights, minlength=n).astype(np.int64)
    return _none_empty(costs_NK, assigned)


def _none_empty(costs_NK: Floats, assigned: Ints) -> Ints:
    """Every cluster with a point: of a cluster with several, the one to which it makes the least difference."""
    assigned = assigned.copy()
    for empty in np.flatnonzero(np.bincount(assigned, minlength=costs_NK.shape[1]) == 0):
        may_go = np.bincount(assigned, minlength=costs_NK.shape[1])[assigned] > 1
        extra = costs_NK[:, empty] - costs_NK[np.arange(len(assigned)), assigned]
        assigned[np.where(may_go, extra, np.inf).argmin()] = empty
    return assigned


def _descend(points_NC: Floats, weights: Ints, centroids_KC: Floats) -> tuple[float, Ints]:
    """Assign and average in turn until nothing is gained. Returns the weighted sum of squares and the assignment."""
    n, best, kept = len(centroids_KC), np.inf, np.zeros(0, np.int64)
    for _ in range(MOST_ROUNDS):
        assigned = assign(_squares(points_NC, centroids_KC), weights)
        centroids_KC = _means(points_NC, weights, assigned, n)
        cost = float(weights @ ((points_NC - centroids_KC[assigned]) ** 2).sum(axis=1))
        if cost >= best:
            break
        best, kept = cost, assigned
    return best, kept


def _means(points_NC: Floats, weights: Ints, assigned: Ints, n: int) -> Floats:
    return np.stack([np.average(points_NC[assigned == k], axis=0, weights=weights[assigned == k]) for k in range(n)])


def _squares(points_NC: Floats, centroids_KC: Floats) -> Floats:
    """Squared distances, [N, K]."""
    products = points_NC @ centroids_KC.T
    squares: Floats = (points_NC**2).sum(axis=1)[:, None] - 2 * products + (centroids_KC**2).sum(axis=1)
    return squares.clip(min=0.0)


def _spread(points_NC: Floats, weights: Ints, n: int, random: _Random) -> Floats:
    """n points far from each other (k-means++): each drawn by weight times its squared distance from those before."""
    chosen = [random.index(weights.astype(np.float64))]
    for _ in range(n - 1):
        nearest = _squares(points_NC, points_NC[chosen]).min(axis=1) * weights
        nearest[chosen] = 0.0
        left = np.ones(len(points_NC))
        left[chosen] = 0.0
        chosen.append(random.index(nearest if nearest.sum() > 0 else left))
    return points_NC[chosen]


class _Random:
    """Draws from bits that numpy keeps across versions (NEP 19)."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)

    def index(self, weights: Floats) -> int:
        """An index, drawn by weights that are not all 0."""
        below = np.cumsum(weights)
        drawn = int(self._bits.random_raw()) / 2**64 * below[-1]
        return min(int(np.searchsorted(below, drawn, side="right")), int(np.flatnonzero(weights)[-1]))
