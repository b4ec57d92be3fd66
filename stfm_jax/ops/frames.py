"""Frame averaging in the plane that stays right on lattices.

For the neighbourhood of spot i, PCA of the centred offsets r_ij gives axes up to sign: four frames
U_g, and averaging a network over the four makes it invariant to rotation, reflection and
translation [STFlow, arXiv 2506.05361]. On a regular lattice the covariance is isotropic, the axes
are rounding noise, and so would be the result. So the frame branch is faded out as the eigengap
closes, toward a branch that needs no PCA: the frame of the edge itself (r_ij and its
perpendicular, averaged over the perpendicular's sign) [ours]. Outputs are blended, not
covariances.

Geometry only: host side, NumPy in float64, once per slide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stfm_jax.ops.neighbors import Graph

BLEND_GAP = 0.1  # relative eigengap from which on the PCA frame is trusted fully [ours]


class EdgeGeometry(NamedTuple):
    """What the frame network needs to know of every edge; invariant up to sign flips."""

    pca: np.ndarray  # [e, 2] centred offset in the PCA axes; each sign arbitrary
    edge: np.ndarray  # [e, 2] centred offset along r_ij and its perpendicular; 2nd sign arbitrary
    distance: np.ndarray  # [e] |r_ij|
    blend: np.ndarray  # [e] weight of the PCA branch, 0 on lattices to 1


def edge_geometry(coords: np.ndarray, graph: Graph) -> EdgeGeometry:
    """Offsets of every edge in the frames of its receiver and of its own.

    Args:
      coords: [n, 2] float64 coordinates in units of the slide's spot spacing.
      graph: neighbours, sorted by receiver, without self edges.

    Returns:
      EdgeGeometry, float64.
    """
    coords = np.asarray(coords, dtype=np.float64)
    n = len(coords)
    r = coords[graph.senders] - coords[graph.receivers]
    degree = np.maximum(graph.degrees(n), 1).astype(np.float64)
    mean = _sum_by_receiver(r, graph, n) / degree[:, None]
    centred = r - mean[graph.receivers]
    products = np.stack(
        [centred[:, 0] ** 2, centred[:, 0] * centred[:, 1], centred[:, 1] ** 2], axis=1
    )
    xx, xy, yy = (_sum_by_receiver(products, graph, n) / degree[:, None]).T
    axis, gap = _principal_axis(xx, xy, yy)

    major = axis[graph.receivers]
    distance = np.hypot(r[:, 0], r[:, 1])
    along = r / distance[:, None]
    return EdgeGeometry(
        pca=np.stack([_dot(centred, major), _cross(major, centred)], axis=1),
        edge=np.stack([_dot(centred, along), _cross(along, centred)], axis=1),
        distance=distance,
        blend=_smoothstep(gap / BLEND_GAP)[graph.receivers],
    )


def _principal_axis(xx, xy, yy):
    """Unit eigenvector [n, 2] of the larger eigenvalue of [[xx, xy], [xy, yy]], and the gap.

    The gap is relative: (l1 - l2) / (l1 + l2). Closed form by the double angle.
    """
    half_difference = 0.5 * (xx - yy)
    radius = np.hypot(half_difference, xy)
    angle = 0.5 * np.arctan2(xy, half_difference)
    trace = xx + yy
    gap = np.where(trace > 0, 2.0 * radius / np.where(trace > 0, trace, 1.0), 0.0)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), gap


def _sum_by_receiver(values, graph, n):
    return np.stack(
        [np.bincount(graph.receivers, weights=column, minlength=n) for column in values.T], axis=1
    )


def _dot(a, b):
    return (a * b).sum(axis=1)


def _cross(a, b):
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _smoothstep(x):
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)
