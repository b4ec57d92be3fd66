"""What super-resolution is compared with: splits in proportion to a smooth field of the parents.

| row | a child's share is in proportion to |
|---|---|
| uniform | 1 |
| bilinear, bicubic | the field that interpolates the parents' counts per child |
| gaussian | the counts per child around, weighted by distance |

Every row is renormalised to the parents' mass (`ops.simplex`). Interpolation needs parents on a
lattice; where there are none (holes, edges) the nearest stands in.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy import ndimage
from scipy.spatial import cKDTree

from stfm_jax.data.coarsen import Pair
from stfm_jax.data.lattice import find_lattice
from stfm_jax.ops import simplex
from stfm_jax.ops.neighbors import median_spacing

ROWS = ("uniform", "bilinear", "bicubic", "gaussian")
GAUSSIAN_SPACINGS = 1.5  # sd in spacings of the children [ours]
_ORDERS = {"bilinear": 1, "bicubic": 3}
_REACH = 3.0  # sds that are looked at


def predictions(pair: Pair, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Real counts [n, g] of the children, by row; each parent's add up to its own.

    Args:
      pair: of which the children's counts are not looked at.
      counts: [P, g] of the parents, for the genes to split.
    """
    field = counts / pair.num_children[:, None]  # per child
    uniform = np.ones((pair.high.num_spots, counts.shape[1]))
    fields = {"uniform": uniform, **_interpolated(pair, field), "gaussian": _smoothed(pair, field)}
    table = pair.table()
    return {name: _split(table, counts, value) for name, value in fields.items()}


def _split(table: np.ndarray, counts: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Counts [P, g] split in proportion to a field [n, g] of the children in `Pair.table`."""
    mask = (table >= 0)[:, None, :]
    shares = field[table].transpose(0, 2, 1)
    parts = simplex.split(counts, np.maximum(shares, 0.0), mask)
    out = np.empty(field.shape)
    out[table[table >= 0]] = parts.transpose(0, 2, 1)[table >= 0]
    return out


def _interpolated(pair: Pair, field: np.ndarray) -> dict[str, np.ndarray]:
    """Splines through the parents' field [P, g], at the children, by row."""
    lattice, index = find_lattice(pair.low.coords_um, pair.low.where)
    there = np.zeros(index.max(axis=0) + 1, bool)
    there[tuple(index.T)] = True
    row_of = np.zeros(there.shape, np.int64)
    row_of[tuple(index.T)] = np.arange(len(index))
    nearest = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
    at = ((pair.high.coords_um - lattice.origin) @ np.linalg.inv(lattice.basis)).T
    filled = field[row_of[tuple(nearest)]]
    genes = np.moveaxis(filled, -1, 0)

    def spline(order: int) -> np.ndarray:
        columns = [ndimage.map_coordinates(g, at, order=order, mode="nearest") for g in genes]
        return np.stack(columns, axis=1)

    return {name: spline(order) for name, order in _ORDERS.items()}


def _smoothed(pair: Pair, field: np.ndarray) -> np.ndarray:
    """Mean of the field over the children around, by a Gaussian of their distance."""
    coords = pair.high.coords_um
    sd = GAUSSIAN_SPACINGS * median_spacing(coords)
    tree = cKDTree(coords)
    near = tree.sparse_distance_matrix(tree, _REACH * sd, output_type="coo_matrix")
    weight = sp.csr_matrix((np.exp(-0.5 * (near.data / sd) ** 2), (near.row, near.col)))
    return (weight @ field[pair.parent]) / weight.sum(axis=1).A1[:, None]
