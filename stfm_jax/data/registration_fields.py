"""Sections as smooth fields, and the rigid or affine map under which two of them agree best.

A section becomes an occupancy (1 on tissue, 0 off it) and, where it has descriptors, their local
means times the occupancy. Two sections agree as far as their fields have a large cosine; zeros off
the tissue make this a trimmed comparison: what one section has lost adds nothing and pulls nowhere.
Fields are blurred by more than half a spot pitch, so the lattice leaves no trace in them to lock
on. All of this is [ours]; what a stack of sections is lives in `registration.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage, optimize
from scipy.spatial import cKDTree
from skimage.measure import find_contours

COARSE, FINE = 1.25, 0.75  # standard deviations of the blur, spot pitches
OUTLINE_WEIGHT = 0.5  # of the outline in the score, where there are descriptors
_MAX_SIDE = 48  # blurs along a section; longer sections get a wider blur
_NODES_PER_BLUR = 1.5
_MARGIN = 3.5  # blurs between the outermost spot and the edge of the grid
_ANGLES = 36  # rotations tried
_STARTS, _FINALISTS = 6, 2
_APART_DEG, _BEHIND = 25.0, 0.2  # of starts: least turn between two, most score behind the best
_ROUGH, _EXACT = 5e-3, 3e-4  # gradient of the score, per blur, at which refinement ends
_STEP = 0.03  # of numerical gradients, blurs
_STRETCH_PENALTY = 0.25  # per squared log stretch of an affine map


@dataclasses.dataclass(frozen=True)
class Affine:
    """A map of the plane: common = section @ matrix.T + shift_um."""

    matrix: np.ndarray  # [2, 2]
    shift_um: np.ndarray  # [2]

    def apply(self, coords_um: np.ndarray) -> np.ndarray:
        """Section coordinates [n, 2] -> common coordinates [n, 2]."""
        return coords_um @ self.matrix.T + self.shift_um

    def inverse(self) -> Affine:
        """The map from common to section coordinates."""
        back = np.linalg.inv(self.matrix)
        return Affine(back, -back @ self.shift_um)

    def after(self, first: Affine) -> Affine:
        """The map that applies `first`, then this one."""
        return Affine(self.matrix @ first.matrix, self.apply(first.shift_um[None])[0])


IDENTITY = Affine(np.eye(2), np.zeros(2))


@dataclasses.dataclass(frozen=True)
class Field:
    """Occupancy and descriptors of one section on a grid of nodes."""

    origin_um: np.ndarray  # [2] x, y of node (0, 0)
    step_um: float
    channels: np.ndarray  # [1 + c, rows, columns] occupancy, then occupancy times descriptors

    @functools.cached_property
    def norms(self) -> tuple[float, float]:
        """Root of the integral of the squared occupancy, and of the squared descriptors."""
        squares = np.einsum("cij,cij->c", self.channels, self.channels) * self.step_um**2
        return float(np.sqrt(squares[0])), float(np.sqrt(squares[1:].sum()))

    @functools.cached_property
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes on or near the tissue: coordinates [m, 2] and values [1 + c, m]."""
        row, column = np.nonzero(self.channels[0] > 0.02)
        points = np.column_stack([column, row]) * self.step_um + self.origin_um
        return points, self.channels[:, row, column]

    @functools.cached_property
    def _splines(self) -> list[np.ndarray]:
        return [ndimage.spline_filter(channel, order=3) for channel in self.channels]

    def at(self, points_um: np.ndarray, num: int | None = None) -> np.ndarray:
        """The first `num` (default all) channels at points [m, 2]: [num, m], 0 off the grid."""
        index = ((points_um - self.origin_um) / self.step_um).T[::-1]
        return np.stack(
            [
                ndimage.map_coordinates(s, index, order=3, mode="constant", prefilter=False)
                for s in self._splines[:num]
            ]
        )


@dataclasses.dataclass(frozen=True)
class Shape:
    """One section ready to be compared: what the search and the refinement need of it."""

    coords_um: np.ndarray  # [n, 2]
    values: np.ndarray  # [n, c] descriptors, standardised and reduced; c = 0 without
    blur_um: float  # of the stack: its spot pitch, or more where the grid is coarser

    @functools.cached_property
    def center_um(self) -> np.ndarray:
        return (self.coords_um.min(axis=0) + self.coords_um.max(axis=0)) / 2

    @functools.cached_property
    def radius_um(self) -> float:
        """Root mean square distance of the spots from their mean."""
        return float(np.sqrt(self.coords_um.var(axis=0).sum()))

    @functools.cached_property
    def coarse(self) -> Field:
        return make_field(self.coords_um, self.values, COARSE * self.blur_um)

    @functools.cached_property
    def fine(self) -> Field:
        return make_field(self.coords_um, self.values, FINE * self.blur_um)


def stack_blur_um(sections_um: Sequence[np.ndarray]) -> float:
    """Unit of the blurs of a stack: the widest spot pitch, or its largest side over _MAX_SIDE."""
    pitch = max(spot_pitch_um(coords) for coords in sections_um)
    return max(pitch, max(np.ptp(coords, axis=0).max() for coords in sections_um) / _MAX_SIDE)


def spot_pitch_um(coords_um: np.ndarray) -> float:
    """Typical distance to the third nearest spot: the pitch of a square or hexagonal lattice."""
    return float(np.median(cKDTree(coords_um).query(coords_um, k=4)[0][:, -1]))


def make_field(coords_um: np.ndarray, values: np.ndarray, blur_um: float) -> Field:
    """The field of spots [n, 2] with descriptors [n, c], blurred by `blur_um`."""
    low = coords_um.min(axis=0) - _MARGIN * blur_um
    step = blur_um / _NODES_PER_BLUR
    shape = np.ceil((coords_um.max(axis=0) + _MARGIN * blur_um - low) / step).astype(int) + 1
    return Field(low, step, _rasterise((coords_um - low) / step, values, shape, _NODES_PER_BLUR))


def _rasterise(at: np.ndarray, values: np.ndarray, shape: np.ndarray, blur: float) -> np.ndarray:
    """Channels [1 + c, rows, columns] of spots at grid positions [n, 2] (x, y)."""
    weights = np.column_stack([np.ones(len(at)), values])
    corner = np.floor(at).astype(int)
    part = at - corner
    sums = np.zeros((weights.shape[1], shape[1], shape[0]))
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
        where = (corner[:, 1] + dy, corner[:, 0] + dx)
        np.add.at(sums, (slice(None), *where), (weights * share[:, None]).T)
    sums = ndimage.gaussian_filter(sums, (0, blur, blur), mode="constant")
    nearest = np.round(at).astype(int)
    inside = np.quantile(sums[0][nearest[:, 1], nearest[:, 0]], 0.75)
    density = sums[0] / inside
    occupancy = 1.25 * density**2 / (density**2 + 0.25)
    sums[1:] *= occupancy / np.maximum(sums[0], 1e-3 * inside)
    sums[0] = occupancy
    return sums


def agreement(fields: tuple[Field, Field], motion: Affine) -> tuple[float, float]:
    """Cosines of outlines and of descriptors (0 without) of two sections.

    Args:
      fields: of the fixed and of the moving section, blurred alike.
      motion: from the moving to the fixed section.
    """
    fixed, moving = fields
    points, own = moving.nodes
    other = fixed.at(motion.apply(points))
    area = moving.step_um**2 * np.sqrt(abs(np.linalg.det(motion.matrix)))
    products = area * np.einsum("cm,cm->c", own, other)
    norms = np.multiply(fixed.norms, moving.norms)
    return products[0] / norms[0], products[1:].sum() / norms[1] if norms[1] > 0 else 0.0


def score(fields: tuple[Field, Field], motion: Affine) -> float:
    """Weighted mean of the cosines: 1 for equal sections, about 0 where nothing agrees."""
    outline, descriptors = agreement(fields, motion)
    weight = outline_weight(*fields)
    return weight * outline + (1 - weight) * descriptors


def outline_weight(fixed: Field, moving: Field) -> float:
    """The outline counts alone where a section has no descriptors."""
    return OUTLINE_WEIGHT if fixed.norms[1] * moving.norms[1] > 0 else 1.0


def align(fixed: Shape, moving: Shape, kind: str, flips: bool) -> Affine:
    """The best map from the moving to the fixed section, over all rotations and shifts.

    Args:
      fixed: stays.
      moving: is mapped.
      kind: "rigid" or "affine".
      flips: whether reflections are tried.
    """
    coarse, fine = (fixed.coarse, moving.coarse), (fixed.fine, moving.fine)
    starts = [
        refine(moving, [(fixed.coarse, IDENTITY)], start, "rigid", moving.coarse, _ROUGH)
        for start in _search(fixed, moving, flips)
    ]
    starts = sorted(starts, key=lambda motion: -score(coarse, motion))[:_FINALISTS]
    ends = [refine(moving, [(fixed.fine, IDENTITY)], s, "rigid", moving.fine) for s in starts]
    best = max(ends, key=lambda motion: score(fine, motion))
    if kind == "affine":
        best = refine(moving, [(fixed.fine, IDENTITY)], best, "affine", moving.fine)
    return best


def _search(fixed: Shape, moving: Shape, flips: bool) -> list[Affine]:
    """The best distinct motions of a grid of rotations, at the best shift of each."""
    step = COARSE * moving.blur_um / _NODES_PER_BLUR
    still, still_half = _turned(fixed, np.eye(2), step)
    found = []
    for mirror in (1.0, -1.0)[: 1 + flips]:
        for angle in np.arange(_ANGLES) * 2 * np.pi / _ANGLES:
            matrix = rotation(angle) @ np.diag([mirror, 1.0])
            turned, half = _turned(moving, matrix, step)
            value, lag = _best_lag(still, turned)
            center = fixed.center_um + (lag + half - still_half) * step
            motion = Affine(matrix, center - matrix @ moving.center_um)
            found.append((value, angle, mirror, motion))
    kept = []
    for start in sorted(found, key=lambda start: -start[0]):
        if all(_apart(start, other) for other in kept):
            kept.append(start)
    return [motion for value, *_, motion in kept[:_STARTS] if value > kept[0][0] - _BEHIND]


def _apart(a: tuple, b: tuple) -> bool:
    turn = np.rad2deg(abs(np.angle(np.exp(1j * (a[1] - b[1])))))
    return a[2] != b[2] or turn > _APART_DEG


def _turned(shape: Shape, matrix: np.ndarray, step: float) -> tuple[np.ndarray, int]:
    """Channels of the section turned about its centre, and the index of the centre."""
    at = (shape.coords_um - shape.center_um) @ matrix.T / step
    half = int(np.ceil(np.abs(at).max() + _MARGIN * _NODES_PER_BLUR))
    return _rasterise(at + half, shape.values, np.full(2, 2 * half + 1), _NODES_PER_BLUR), half


def _best_lag(fixed: np.ndarray, moving: np.ndarray) -> tuple[float, np.ndarray]:
    """Best score over all shifts of one raster over the other, and that shift (x, y) in nodes."""
    size = fft.next_fast_len(fixed.shape[1] + moving.shape[1], real=True)
    spectra = [fft.rfft2(raster, (size, size)) for raster in (fixed, moving)]
    product = spectra[0] * spectra[1].conj()
    norms = [np.sqrt(np.einsum("cij,cij->c", r, r)) for r in (fixed, moving)]
    outline = product[0] / (norms[0][0] * norms[1][0])
    scale = np.linalg.norm(norms[0][1:]) * np.linalg.norm(norms[1][1:])
    if scale > 0:
        outline = OUTLINE_WEIGHT * outline
        outline = outline + (1 - OUTLINE_WEIGHT) * product[1:].sum(axis=0) / scale
    scores = fft.irfft2(outline, (size, size))
    peak = np.array(np.unravel_index(scores.argmax(), scores.shape))
    lag = (peak + size // 2) % size - size // 2
    return float(scores.max()), lag[::-1].astype(float)


def rotation(angle: float) -> np.ndarray:
    """The matrix [2, 2] that turns by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def refine(
    moving: Shape,
    targets: Sequence[tuple[Field, Affine]],
    start: Affine,
    kind: str,
    field: Field,
    tolerance: float = _EXACT,
) -> Affine:
    """The map near `start` that maximises the mean score against all targets.

    Args:
      moving: the section to map into the common frame.
      targets: fields of other sections with their maps into the common frame.
      start: a map of `moving` into the common frame.
      kind: "rigid" or "affine".
      field: of `moving`, blurred as the targets are.
      tolerance: gradient of the score, per blur width, at which to stop.
    """
    back = [(target, motion.inverse()) for target, motion in targets]
    center = start.apply(moving.center_um[None])[0]

    def moved(change: np.ndarray) -> Affine:
        change = change * moving.blur_um
        if kind == "rigid":
            matrix = rotation(change[0] / moving.radius_um)
        else:
            matrix = np.eye(2) + change[:4].reshape(2, 2) / moving.radius_um
        return Affine(matrix, center - matrix @ center + change[-2:]).after(start)

    def cost(change: np.ndarray) -> float:
        motion = moved(change)
        mean = np.mean([score((target, field), b.after(motion)) for target, b in back])
        stretch = np.log(np.linalg.svd(motion.matrix, compute_uv=False))
        return -mean + _STRETCH_PENALTY * (stretch**2).sum()

    # Central differences: one-sided ones are off by more than the gradients near the maximum, and
    # line searches then end nowhere.
    def gradient(change: np.ndarray) -> np.ndarray:
        steps = _STEP * np.eye(len(change))
        return np.array([cost(change + s) - cost(change - s) for s in steps]) / (2 * _STEP)

    free = np.zeros(3 if kind == "rigid" else 6)
    options = {"gtol": tolerance, "maxiter": 60}
    return moved(optimize.minimize(cost, free, method="BFGS", jac=gradient, options=options).x)


def outline_um(field: Field) -> np.ndarray:
    """Points [m, 2] along the border of the tissue, closer together than the grid's nodes."""
    edges = np.pad(field.channels[0], 1)
    lines = [line - 1 for line in find_contours(edges, 0.5)]
    share = np.arange(8)[:, None, None] / 8
    points = [((1 - share) * line[:-1] + share * line[1:]).reshape(-1, 2) for line in lines]
    return np.concatenate(points)[:, ::-1] * field.step_um + field.origin_um
