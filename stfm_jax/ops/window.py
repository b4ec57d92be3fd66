"""The spots around each spot, cell by cell of its lattice: what a convolution sees."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.ops.neighbors import workers


def lattice_window(
    coords: np.ndarray, steps: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """The spots in the `side` x `side` cells around each spot.

    A cell is taken by the spot that is nearest to its centre, if that is less than half the shorter
    step away; so spots that lie on no lattice have a window too.

    Args:
      coords: [n, 2], all different.
      steps: [2, 2] from a cell to the next, a row for each axis; in the unit of coords.
      side: odd.

    Returns:
      [n, side * side] int32, cells of the first step's axis slowest, 0 where there is no spot; and
      as many bool, whether there is. The middle one is the spot itself.
    """
    reach = np.arange(side) - side // 2
    cells = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    centres = coords[:, None] + cells @ np.asarray(steps, np.float64)
    within = np.linalg.norm(steps, axis=1).min() / 2
    threads = workers(centres[..., 0].size)
    distance, found = cKDTree(coords).query(centres, distance_upper_bound=within, workers=threads)
    there = np.isfinite(distance)
    return np.where(there, found, 0).astype(np.int32), there
