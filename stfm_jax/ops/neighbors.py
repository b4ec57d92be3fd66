"""Tie-complete nearest neighbours as an edge list.

On a lattice the k-th neighbour is one of several at the same distance, and which of them a plain
kNN returns is decided by rounding noise. Every neighbour tied with the k-th is kept here, so the
graph depends on the geometry alone: degrees vary, which is what the edge list is for.

Host side, NumPy in float64: a graph is built once per slide, outside jit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.errors import InputError

TIE_TOLERANCE = 1e-4  # relative to the k-th distance [ours]
EDGES_AT_ONCE = 1 << 18
MAX_TIES = 24  # beyond k: a spot with more neighbours tied with its k-th is refused [ours]


class Graph(NamedTuple):
    """Sparse neighbour graph, edges sorted by receiver."""

    senders: np.ndarray  # [e] int32, the neighbour j
    receivers: np.ndarray  # [e] int32, the spot i that looks at it

    def degrees(self, num_spots: int) -> np.ndarray:
        """Number of neighbours of each spot, [n]."""
        return np.bincount(self.receivers, minlength=num_spots)


def knn_graph(coords: np.ndarray, k: int, include_self: bool = False) -> Graph:
    """The k nearest neighbours of every spot, and all that tie with the k-th.

    Args:
      coords: [n, 2] or [n, 3] coordinates, any unit; computed in float64.
      k: neighbours wanted, not counting the spot itself.
      include_self: adds the edge i -> i.

    Returns:
      Graph whose receivers ascend; the senders of a receiver ascend.

    Raises:
      InputError: fewer than k + 1 spots, or over MAX_TIES neighbours tied with the k-th.
    """
    coords = np.asarray(coords, dtype=np.float64)
    n = len(coords)
    if n <= k:
        raise InputError(
            f"{n} spots are too few for {k} neighbours each; at least {k + 1} are needed. Lower "
            "the number of neighbours or leave this slide out."
        )
    tree = cKDTree(coords)
    width = min(n, k + 2 + MAX_TIES)
    first = min(n, k + 6)
    distance, index = tree.query(coords, k=first)
    # The k-th neighbour is at column k: column 0 is the spot itself.
    radius = distance[:, k] * (1.0 + TIE_TOLERANCE)
    open_rows = distance[:, -1] <= radius
    if first < width and open_rows.any():
        distance, index = _widen(distance, index, width)
        distance[open_rows], index[open_rows] = tree.query(coords[open_rows], k=width)
        open_rows &= distance[:, -1] <= radius
    if open_rows.any() and width < n:
        raise InputError(
            f"spot {int(np.flatnonzero(open_rows)[0])} has over {MAX_TIES} neighbours at the "
            f"distance of its {k}-th: the coordinates look degenerate (many spots on a circle "
            "or on top of one another). Check their unit and precision."
        )
    receivers = np.repeat(np.arange(n), distance.shape[1]).reshape(distance.shape)
    keep = distance <= radius[:, None]
    if not include_self:
        keep &= index != receivers
    senders, receivers = index[keep], receivers[keep]
    order = np.lexsort((senders, receivers))
    return Graph(senders[order].astype(np.int32), receivers[order].astype(np.int32))


def _widen(distance, index, width):
    pad = ((0, 0), (0, width - distance.shape[1]))
    return (
        np.pad(distance, pad, constant_values=np.inf),
        np.pad(index, pad, constant_values=-1),
    )


def neighbor_mean(values: np.ndarray, graph: Graph) -> np.ndarray:
    """Mean of each spot's neighbours, [n, ...]: neighbourhood features and smoothing.

    Some receivers at a time, so that memory does not grow with the number of edges.
    """
    n = len(values)
    degrees = graph.degrees(n)
    ends = np.cumsum(degrees)
    mean = np.zeros_like(values)
    start = 0
    while start < n:
        first_edge = ends[start] - degrees[start]
        stop = max(int(np.searchsorted(ends, first_edge + EDGES_AT_ONCE)), start + 1)
        rows = start + np.flatnonzero(degrees[start:stop])
        if len(rows):
            sent = values[graph.senders[first_edge : ends[stop - 1]]].astype(np.float64)
            total = np.add.reduceat(sent, ends[rows] - degrees[rows] - first_edge, axis=0)
            mean[rows] = total / degrees[rows].reshape(-1, *[1] * (values.ndim - 1))
        start = stop
    return mean


def median_spacing(coords: np.ndarray) -> float:
    """Median distance to the nearest neighbour, in the unit of coords."""
    return float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
