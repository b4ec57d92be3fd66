"""The lattice that a slide's spots lie on, found from their places; or one laid over a slide.

Square (Spatial Transcriptomics, bins), hexagonal (Visium), or of rectangles (the staggered array of
Spatial Transcriptomics), turned and shifted at will, with gaps
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
RECTANGLE = "rectangle"  # lattice of rectangles, plain or centred
_SEEDS, _ALIKE, _ASLANT = 60, 0.15, 0.3  # steps looked at; how near others lie; sine between two
_WIDER, _SKEWED = 1.5, 0.03  # growth of what is fitted; what a rectangle may be off [ours]
_MOST = 50_000  # spots of a hexagonal array: Visium has 14,336
_ROUNDS = 5  # of fitting the lattice to the points that spots were given


_Fit = tuple[str, np.ndarray, np.ndarray]  # kind, basis and origin [3, 2], points [n, 2]


class Lattice(NamedTuple):
    """Points `origin + index @ basis`, micrometres."""

    kind: str  # of FOLDS, or RECTANGLE
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
    found = None
    if len(coords_um) >= 3:
        found = _regular(coords_um) or _rectangular(coords_um)
    if found is None:
        raise InputError(
            f"{where}: its {len(coords_um)} spots lie on no lattice that is square, hexagonal, or "
            "of rectangles, plain or centred; name each spot's parent in obs['parent'], or group "
            "spots by size (coarsen.size_um)."
        )
    kind, fit, index = found
    least = index.min(axis=0)
    lattice = Lattice(kind, fit[:2], fit[2] + least @ fit[:2])
    return lattice, (index - least).astype(np.int64)


def _regular(coords_um: np.ndarray) -> _Fit | None:
    """The square or hexagonal lattice of spots; None where they lie on none."""
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
            return None
        fit = np.linalg.lstsq(design, coords_um, rcond=None)[0]
        index = np.round((coords_um - fit[2]) @ np.linalg.inv(fit[:2]))
    return _checked(kind, fit, index, coords_um, float(pitch))


def _checked(
    kind: str, fit: np.ndarray, index: np.ndarray, coords_um: np.ndarray, pitch: float
) -> _Fit | None:
    """The fit, where every spot has a point of its own, and lies near it."""
    off = np.linalg.norm(coords_um - index @ fit[:2] - fit[2], axis=1).max() / pitch
    alone = len(np.unique(index, axis=0)) == len(index)
    return (kind, fit, index) if alone and off <= _OFF else None


def _rectangular(coords_um: np.ndarray) -> _Fit | None:
    """The lattice of plain or centred rectangles of spots; None where they lie on none.

    Fitted from the middle outwards: over a whole slide no guess of two steps is good enough.
    """
    away = coords_um - np.median(coords_um, axis=0)
    distance, around = cKDTree(coords_um).query(coords_um, k=min(9, len(coords_um)))
    steps = (coords_um[around[:, 1:]] - coords_um[:, None]).reshape(-1, 2)
    first = _common(steps)
    across = np.abs(steps @ (first[1], -first[0])) > _ASLANT * np.linalg.norm(first) * (
        np.linalg.norm(steps, axis=1)
    )
    if not across.any():
        return None
    second = _common(steps[across])
    basis = np.array([first, second if first @ second >= 0 else -second])
    pitch = float(np.median(distance[:, 1]))
    fit = np.vstack([basis, coords_um[np.argmin((away**2).sum(axis=1))]])
    reach, farthest = 3 * pitch, float(np.linalg.norm(away, axis=1).max())
    while True:
        here = coords_um[np.linalg.norm(coords_um - fit[2], axis=1) <= reach]
        if abs(np.linalg.det(fit[:2])) < 1e-6 * pitch**2:
            return None
        design = np.column_stack(
            [np.round((here - fit[2]) @ np.linalg.inv(fit[:2])), np.ones(len(here))]
        )
        if np.linalg.matrix_rank(design) == 3:
            fit = np.linalg.lstsq(design, here, rcond=None)[0]
        if reach > 2 * farthest:
            break
        reach *= _WIDER
    if not _is_rectangular(fit[:2]):
        return None
    index = np.round((coords_um - fit[2]) @ np.linalg.inv(fit[:2]))
    return _checked(RECTANGLE, fit, index, coords_um, pitch)


def _common(steps: np.ndarray) -> np.ndarray:
    """The step [2] that most of the short ones of steps [m, 2] are near."""
    size = np.linalg.norm(steps, axis=1)
    short = steps[size < _NEAR * np.median(np.sort(size)[: max(1, len(size) // 4)])]
    seeds = short[:: max(1, len(short) // _SEEDS)]
    near = np.linalg.norm(short[None] - seeds[:, None], axis=2) < (
        _ALIKE * np.linalg.norm(seeds, axis=1)[:, None]
    )
    return short[near[np.argmax(near.sum(axis=1))]].mean(axis=0)


def _is_rectangular(basis: np.ndarray) -> bool:
    """Whether steps are at right angles, equally long, or one goes half along the other."""
    first, second = np.linalg.norm(basis, axis=1)
    along = abs(basis[0] @ basis[1])
    halves = abs(along / first**2 - 0.5), abs(along / second**2 - 0.5)
    tests = along / (first * second), abs(first - second) / first, *halves
    return min(tests) < _SKEWED


def is_hexagonal(coords: np.ndarray) -> bool:
    """Whether places [n, 2] of any unit lie on a hexagonal array."""
    if not _FEWEST <= len(coords) <= _MOST:
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


def grid_cells(coords_um: np.ndarray) -> np.ndarray:
    """Column and row [n, 2] int32 of spots [n, 2] on a grid of their spacing, from 0 on."""
    away = coords_um - coords_um.min(axis=0)
    return np.round(away / spot_spacing_um(coords_um)).astype(np.int32)


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
