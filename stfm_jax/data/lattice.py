"""The lattice that a slide's spots lie on, found from their places; or one laid over a slide.

Square (Spatial Transcriptomics, bins) or hexagonal (Visium), turned and shifted at will, with gaps
where there is no tissue and with some jitter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.errors import InputError

FOLDS = {"square": 4, "hex": 6}  # neighbours of a point, and turns that change nothing
BLOCK_UM = 2_000.0  # side of the squares that the points of a slide are gone through in
_NEAR = 1.25  # pitches; farther spots are none of the direct neighbours
_OFF = 0.45  # pitches; a spot farther from its point lies on no lattice
_FEWEST, _ORDERLY = 20, 0.9  # spots by which a kind is told, and how well they must fit [ours]
_ROUNDS = 5  # of fitting the lattice to the points that spots were given


class Lattice(NamedTuple):
    """Points `origin + index @ basis`, micrometres."""

    kind: str  # of FOLDS
    basis: np.ndarray  # [2, 2] a row for each step; of a hexagonal one 60 degrees apart
    origin: np.ndarray  # [2]

    def points(self, index: np.ndarray) -> np.ndarray:
        """Places [n, 2] of points [n, 2]."""
        return self.origin + index @ self.basis


def find_lattice(coords_um: np.ndarray, where: str) -> tuple[Lattice, np.ndarray]:
    """The lattice and each spot's point on it.

    Args:
      coords_um: [n, 2], n >= 3.
      where: how messages name the slide.

    Returns:
      The lattice, and [n, 2] int64: every spot's own point, the least of each column being 0.

    Raises:
      InputError: the spots lie on none.
    """
    lost = InputError(
        f"{where}: its {len(coords_um)} spots lie on no square or hexagonal lattice; name each "
        "spot's parent in obs['parent'], or group spots by size (coarsen.size_um)."
    )
    if len(coords_um) < 3:
        raise lost
    steps = _steps(coords_um)
    turns = _turns(steps)
    kind = max(turns, key=lambda name: abs(turns[name]))
    pitch, turned = np.median(np.linalg.norm(steps, axis=1)), np.angle(turns[kind]) / FOLDS[kind]
    between = turned + np.array([0.0, 2 * np.pi / FOLDS[kind]])
    basis = pitch * np.column_stack([np.cos(between), np.sin(between)])
    at = coords_um @ np.linalg.inv(basis)
    phase = np.angle(np.exp(2j * np.pi * at).mean(axis=0)) / (2 * np.pi)
    index = np.round(at - phase)
    for _ in range(_ROUNDS):
        design = np.column_stack([index, np.ones(len(index))])
        if np.linalg.matrix_rank(design) < 3:
            raise lost
        fit = np.linalg.lstsq(design, coords_um, rcond=None)[0]
        index = np.round((coords_um - fit[2]) @ np.linalg.inv(fit[:2]))
    off = np.linalg.norm(coords_um - index @ fit[:2] - fit[2], axis=1).max() / pitch
    if off > _OFF or len(np.unique(index, axis=0)) < len(index):
        raise lost
    least = index.min(axis=0)
    lattice = Lattice(kind, fit[:2], fit[2] + least @ fit[:2])
    return lattice, (index - least).astype(np.int64)


def is_hexagonal(coords: np.ndarray) -> bool:
    """Whether places [n, 2] of any unit lie on a hexagonal lattice."""
    if len(coords) < _FEWEST:
        return False
    steps = _steps(coords)
    return abs(_turns(steps)["hex"]) > _ORDERLY


def _turns(steps: np.ndarray) -> dict[str, complex]:
    """How well the directions of steps [m, 2] fit each kind of lattice: up to 1 in size."""
    angle = np.arctan2(steps[:, 1], steps[:, 0])
    return {kind: np.mean(np.exp(1j * fold * angle)) for kind, fold in FOLDS.items()}


def spot_spacing_um(coords_um: np.ndarray) -> float:
    """Distance between neighbouring spots: a lattice's pitch, or one over the root of the density.

    On scattered spots the nearest neighbour is much too near (half of what discs need to cover the
    tissue) and the fourth about right; on a lattice with holes it is the other way round.
    """
    n = len(coords_um)
    if n == 1:
        return 1.0
    distance = np.median(cKDTree(coords_um).query(coords_um, k=min(5, n))[0], axis=0)
    is_lattice = distance[-1] < 1.6 * distance[1]
    return float(distance[min(2, n - 1)] if is_lattice else distance[-1])


def covering(size_um: tuple[float, float], spacing_um: float, kind: str) -> np.ndarray:
    """Places [n, 2] of a lattice over a slide, half a spacing inside its edges.

    They come in squares of BLOCK_UM, row by row in each: who reads patches in their order goes over
    the slide once, not back and forth along it.

    Args:
      size_um: width and height of the slide.
      spacing_um: between neighbours.
      kind: of FOLDS.
    """
    step = spacing_um * (np.sqrt(3) / 2 if kind == "hex" else 1.0)
    rows = np.arange(spacing_um / 2, size_um[1], step)
    columns = np.arange(spacing_um / 2, size_um[0], spacing_um)
    x, y = np.meshgrid(columns, rows)
    if kind == "hex":
        x[1::2] += spacing_um / 2
    points = np.column_stack([x.ravel(), y.ravel()])
    points = points[points[:, 0] < size_um[0]]
    block = points // BLOCK_UM
    return points[np.lexsort((points[:, 0], points[:, 1], block[:, 0], block[:, 1]))]


def _steps(coords_um: np.ndarray) -> np.ndarray:
    """From spots to their direct neighbours, [m, 2]."""
    around = min(7, len(coords_um))
    distance, index = cKDTree(coords_um).query(coords_um, k=around)
    near = distance[:, 1:] < _NEAR * np.median(distance[:, 1])
    return (coords_um[index[:, 1:]] - coords_um[:, None])[near]
