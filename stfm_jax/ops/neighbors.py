"""Tie-complete nearest neighbours as an edge list.

On a lattice the k-th neighbour is one of several at the same distance, and which of them a plain
kNN returns is decided by rounding noise. Every neighbour tied with the k-th is kept here, so the
graph depends on the geometry alone: degrees vary, which is what the edge list is for.

Host side, NumPy in float64: a graph is built once per slide, outside jit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from stfm_jax.errors import InputError

TIE_TOLERANCE = 1e-4  # relative to the k-th distance [ours]
SPOTS_AT_ONCE = 1 << 16
FEW = 1 << 14  # places that one thread has found before others have started
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
    tree = spot_tree(coords, k)
    n = tree.n
    parts = [
        nearest(tree, np.arange(i, min(i + SPOTS_AT_ONCE, n)), k, include_self)
        for i in range(0, n, SPOTS_AT_ONCE)
    ]
    starts = range(0, n, SPOTS_AT_ONCE)
    return Graph(
        np.concatenate([part.senders for part in parts]),
        np.concatenate([i + part.receivers for i, part in zip(starts, parts, strict=True)]),
    )


def spot_tree(coords: np.ndarray, k: int) -> cKDTree:
    """What `nearest` searches; coordinates [n, 2] or [n, 3] in float64.

    Raises:
      InputError: fewer than k + 1 spots.
    """
    n = len(coords)
    if n <= k:
        raise InputError(
            f"{n} spots are too few for {k} neighbours each; at least {k + 1} are needed. Lower "
            "the number of neighbours or leave this slide out."
        )
    return cKDTree(np.asarray(coords, dtype=np.float64))


def nearest(tree: cKDTree, spots: np.ndarray, k: int, include_self: bool = False) -> Graph:
    """Neighbours of some spots [m] of a tree, as `knn_graph`; receivers count within `spots`."""
    n, coords = tree.n, tree.data[spots]
    width = min(n, k + 2 + MAX_TIES)
    first = max(min(n, k + 6), 2)  # of one scipy leaves the axis out
    distance, index = tree.query(coords, k=first, workers=workers(len(coords)))
    # The k-th neighbour is at column k: column 0 is the spot itself.
    radius = distance[:, k] * (1.0 + TIE_TOLERANCE)
    open_rows = distance[:, -1] <= radius
    if first < width and open_rows.any():
        distance, index = _widen(distance, index, width)
        distance[open_rows], index[open_rows] = tree.query(coords[open_rows], k=width)
        open_rows &= distance[:, -1] <= radius
    if open_rows.any() and width < n:
        raise InputError(
            f"spot {int(spots[open_rows][0])} has over {MAX_TIES} neighbours at the "
            f"distance of its {k}-th: the coordinates look degenerate (many spots on a circle "
            "or on top of one another). Check their unit and precision."
        )
    keep = distance <= radius[:, None]
    if not include_self:
        keep &= index != spots[:, None]
    senders = np.sort(np.where(keep, index, n), axis=1)  # those left out are last
    receivers = np.repeat(np.arange(len(spots)), keep.sum(axis=1))
    return Graph(senders[senders < n].astype(np.int32), receivers.astype(np.int32))


def workers(places: int) -> int:
    """Threads to look up so many places with in a k-d tree, as scipy takes them."""
    return 1 if places <= FEW else -1


def _widen(distance, index, width):
    pad = ((0, 0), (0, width - distance.shape[1]))
    return (
        np.pad(distance, pad, constant_values=np.inf),
        np.pad(index, pad, constant_values=-1),
    )


def neighbor_mean(values: np.ndarray, graph: Graph, num_receivers: int | None = None) -> np.ndarray:
    """Mean of each receiver's neighbours: neighbourhood features and smoothing.

    Args:
      values: [n, ...] floating point; sums are of that precision.
      graph: whose senders are rows of values.
      num_receivers: m, where receivers are not those rows.

    Returns:
      [m, ...], zero where there are no neighbours.
    """
    m = len(values) if num_receivers is None else num_receivers
    degrees = graph.degrees(m)
    ends = np.concatenate([[0], np.cumsum(degrees)])
    ones = np.ones(len(graph.senders), values.dtype)
    adjacency = sp.csr_matrix((ones, graph.senders, ends), shape=(m, len(values)))
    total = adjacency @ values.reshape(len(values), -1)
    total /= np.maximum(degrees, 1)[:, None]
    return total.reshape(m, *values.shape[1:])


def median_spacing(coords: np.ndarray) -> float:
    """Median distance to the nearest neighbour, in the unit of coords."""
    return float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
