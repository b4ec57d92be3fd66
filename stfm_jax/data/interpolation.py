"""From parents' values to their children's places, as sparse matrices; on the host.

What multiplies is a field per child, [P, ...] of the parents; where there is no tissue nothing is
assumed, or the nearest parent stands in.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy import ndimage
from scipy.spatial import cKDTree

from stfm_jax.data.lattice import Lattice, find_lattice

_REACH = 3.0  # standard deviations that are looked at


def spread(low_um: np.ndarray, high_um: np.ndarray, parent: np.ndarray) -> float:
    """Mean square distance of children [n, 2] from their parents [P, 2] along an axis."""
    return float(np.mean((high_um - low_um[parent]) ** 2))


def gaussian(
    low_um: np.ndarray,
    high_um: np.ndarray,
    parent: np.ndarray,
    sd_um: float,
    spread_um2: float | None = None,
) -> sp.csr_matrix:
    """Mean over the tissue around by a Gaussian of its distance, [n, P]; rows sum to 1.

    A parent weighs as its children do, who lie about its middle: their spread widens the Gaussian.

    Args:
      low_um: [P, 2] of the parents.
      high_um: [n, 2] of the children.
      parent: [n] its row.
      sd_um: standard deviation.
      spread_um2: of the children, see `spread`; of a part of a sample that of the whole: parents
        that lie just where the Gaussian ends are then in or out alike.
    """
    if spread_um2 is None:
        spread_um2 = spread(low_um, high_um, parent)
    sd = np.sqrt(sd_um**2 + spread_um2)
    near = cKDTree(high_um).sparse_distance_matrix(
        cKDTree(low_um), _REACH * sd, output_type="coo_matrix"
    )
    size = np.bincount(parent, minlength=len(low_um))
    weight = size[near.col] * np.exp(-0.5 * (near.data / sd) ** 2)
    matrix = sp.csr_matrix((weight, (near.row, near.col)), (len(high_um), len(low_um)))
    return sp.diags(1.0 / matrix.sum(axis=1).A1) @ matrix


def bilinear(low_um: np.ndarray, high_um: np.ndarray, where: str) -> sp.csr_matrix:
    """Linear along both steps of the parents' lattice, [n, P]; rows sum to 1.

    Args:
      low_um: [P, 2] of the parents.
      high_um: [n, 2] of the children.
      where: how messages name the parents.

    Raises:
      InputError: the parents lie on no lattice.
    """
    lattice, index = find_lattice(low_um, where)
    row_of = nearest_rows(index)
    at = lattice_places(lattice, high_um)
    base = np.floor(at).astype(np.int64)
    part = at - base
    n = np.arange(len(at))
    rows, columns, weights = [], [], []
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        i, j = np.clip(base + corner, 0, np.array(row_of.shape) - 1).T
        rows.append(n)
        columns.append(row_of[i, j])
        weights.append(np.prod(np.where(corner, part, 1.0 - part), axis=1))
    shape = len(high_um), len(low_um)
    stacked = [np.concatenate(each) for each in (weights, rows, columns)]
    return sp.csr_matrix((stacked[0], (stacked[1], stacked[2])), shape)


def bicubic(field: np.ndarray, low_um: np.ndarray, high_um: np.ndarray, where: str) -> np.ndarray:
    """Cubic splines through a field [P, g], at the children [n, g]; arguments as of `bilinear`."""
    lattice, index = find_lattice(low_um, where)
    filled, at = field[nearest_rows(index)], lattice_places(lattice, high_um).T
    genes = np.moveaxis(filled, -1, 0)
    columns = [ndimage.map_coordinates(gene, at, order=3, mode="nearest") for gene in genes]
    return np.stack(columns, axis=1)


def nearest_rows(index: np.ndarray) -> np.ndarray:
    """For every point of the lattice's box the row of the spot there [n, 2], or of the nearest."""
    there = np.zeros(index.max(axis=0) + 1, bool)
    there[tuple(index.T)] = True
    row_of = np.zeros(there.shape, np.int64)
    row_of[tuple(index.T)] = np.arange(len(index))
    nearest = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
    return row_of[tuple(nearest)]


def lattice_places(lattice: Lattice, coords_um: np.ndarray) -> np.ndarray:
    """Places [n, 2] in steps of the lattice."""
    return (coords_um - lattice.origin) @ np.linalg.inv(lattice.basis)
