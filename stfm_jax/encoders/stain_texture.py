"""The built-in H&E descriptor: stain, texture and nuclei of a patch as named numbers.

A pure function of the patch: no weights, nothing fitted to data, the same on every machine. All
lengths are micrometres, so scanners of different resolution give comparable numbers. Each
quantity is averaged under Gaussian windows centred on the spot, because a spot's transcripts come
from its centre while its surroundings say what tissue it lies in; oriented filters enter only by
what a rotation or a reflection leaves unchanged [ours].

Reading images and cutting patches is `stfm_jax.data`; standardising the numbers per slide, which
also takes out differences in staining, is left to the regressors and models.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.color import hed_from_rgb

from stfm_jax.encoders.pooling import WINDOW_NAMES, CellPool, PatchPool
from stfm_jax.errors import InputError

Pool = PatchPool | CellPool
Described = dict[str, np.ndarray]  # by name of the column, of one spot or [n]

MIN_SIZE_UM = 64.0
LEVELS = 5  # the working images have about 1, 2, 4, 8 and 16 micrometres per pixel

BLOCK_PX = 2 ** (LEVELS - 1)  # working images have a multiple of this many pixels a side
_FLOOR = 1e-3  # optical density added before a logarithm: below it is noise of the camera
_WHITE, _WHITE_WIDTH = 0.08, 0.015  # mean optical density at which glass passes into tissue
_OPENINGS_UM = (6, 10, 14, 22, 34, 54)
_TENSOR_PX = (3, 8)  # smoothing of the structure tensor, pixels of its scale
_SHAPE_BINS = 9  # odd: flat surfaces fall into the middle of a bin
_PEAK = 0.02  # least response (optical density) of a nucleus
_PEAK_BINS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
_NEIGHBOURS, _NEAR_UM = 5, 20.0  # what counts as the surroundings of a nucleus


def describe(patches: np.ndarray, um_per_px: float) -> np.ndarray:
    """Describes H&E patches.

    Args:
      patches: [b, p, p, 3] uint8 RGB, centred on their spots.
      um_per_px: micrometres per pixel of the patches.

    Returns:
      [b, f] float32, finite; columns as in `feature_names`. Turning or mirroring a patch by
      quarter turns changes nothing but rounding.

    Raises:
      InputError: patches of another shape or type, or covering less than MIN_SIZE_UM.
    """
    patches = np.asarray(patches)
    if patches.ndim != 4 or patches.shape[-1] != 3 or patches.shape[1] != patches.shape[2]:
        raise InputError(f"expected square RGB patches [b, p, p, 3], found {patches.shape}.")
    if patches.dtype != np.uint8:
        raise InputError(f"expected uint8 patches (0 to 255), found {patches.dtype}; convert them.")
    if not (np.isfinite(um_per_px) and um_per_px > 0):
        raise InputError(f"um_per_px must be a positive number, found {um_per_px}.")
    if patches.shape[1] * um_per_px < MIN_SIZE_UM:
        raise InputError(
            f"patches cover {patches.shape[1] * um_per_px:.1f} um, but the descriptor needs at "
            f"least {MIN_SIZE_UM:.0f} um; read larger patches or check um_per_px ({um_per_px})."
        )
    rows = [list(_describe_one(patch, um_per_px).values()) for patch in patches]
    return np.asarray(rows, dtype=np.float32).reshape(len(patches), len(feature_names()))


@functools.cache
def feature_names() -> tuple[str, ...]:
    """Names of the columns of `describe`: `<block>.<quantity>[.<scale>].<window>`."""
    blank = np.full((int(MIN_SIZE_UM), int(MIN_SIZE_UM), 3), 255, np.uint8)
    return tuple(_describe_one(blank, 1.0))


def _describe_one(patch: np.ndarray, um_per_px: float) -> Described:
    side_um = patch.shape[0] * um_per_px
    side = BLOCK_PX * max(round(side_um / BLOCK_PX), 1)
    return _described(*_optical(patch, side), side_um / side, PatchPool())


def describe_region(
    region: np.ndarray, um_per_px: float, spots_um: np.ndarray, field_um: float
) -> np.ndarray:
    """Describes what is around many spots of one region; maps are made once for all of them.

    Args:
      region: [p, p, 3] uint8 RGB, whose side is whole blocks of BLOCK_PX pixels and cells.
      um_per_px: of the region: CELL_UM over a power of two.
      spots_um: [n, 2] (x, y) from its corner, at least half a field inside.
      field_um: side of the square around a spot that is looked at.

    Returns:
      [n, f] float32, finite; columns as in `feature_names`. Other than `describe` it knows what
      lies beyond the square when it filters.
    """
    pool = CellPool(region.shape[0] * um_per_px, spots_um, field_um)
    # A hair more, or openings of 6 and of 10 um would round to the same pixels.
    um = um_per_px * (1 + 1e-6)
    found = _described(*_optical(region, region.shape[0]), um, pool)
    return np.stack([*found.values()], axis=1).astype(np.float32)


def _described(density, saturation, um: float, pool: Pool) -> Described:
    hed = np.tensordot(hed_from_rgb.T.astype(np.float32), density, 1)
    overall = density.mean(axis=0)
    out = _colour(density, hed, overall, um, pool)
    out |= _pyramid("H", hed[0], um, pool, first=0)
    out |= _pyramid("O", overall, um, pool, first=0, patterns=True)
    out |= _pyramid("S", saturation, um, pool, first=1, oriented=False)
    out |= _granulometry(hed[0], overall, um, pool)
    out |= _nuclei(hed[0], hed[1], saturation, um, pool)
    return out


# --- images and windows ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _area_weights(pixels: int, side: int) -> np.ndarray:
    """[side, pixels]: each row averages the pixels (with fractions) under one output pixel."""
    edges = np.linspace(0.0, pixels, side + 1)
    column = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], column + 1) - np.maximum(edges[:-1, None], column)
    overlap = np.maximum(overlap, 0.0)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _optical(patch: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Optical density [3, side, side] and saturation [side, side], resampled by area."""
    weights = _area_weights(patch.shape[0], side)
    channels = np.ascontiguousarray(np.moveaxis(patch, -1, 0), dtype=np.float32)
    rgb = np.clip(weights @ channels @ weights.T / 255.0, 1 / 255, 1.0)
    top = rgb.max(axis=0)
    return -np.log10(rgb), (top - rgb.min(axis=0)) / top


def _named(block: str, values: np.ndarray) -> Described:
    return {f"{block}.{w}": v for w, v in zip(WINDOW_NAMES, values, strict=False)}


def _half(image: np.ndarray) -> np.ndarray:
    """Averages blocks of 2 x 2 pixels; sides are even."""
    rows = image[::2] + image[1::2]
    return 0.25 * (rows[:, ::2] + rows[:, 1::2])


def _smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=3.0)


def _derivatives(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """Central differences d/dy, d/dx, d2/dy2, d2/dx2, d2/dydx per pixel."""
    p = np.pad(image, 1, mode="symmetric")
    up, down, left, right = p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]
    xy = 0.25 * (p[2:, 2:] + p[:-2, :-2] - p[2:, :-2] - p[:-2, 2:])
    twice = 2 * image
    return 0.5 * (down - up), 0.5 * (right - left), up + down - twice, left + right - twice, xy


# --- blocks ---------------------------------------------------------------------------------------


def _glass(overall: np.ndarray) -> np.ndarray:
    """How far each pixel is glass (1) rather than tissue (0)."""
    return 1 / (1 + np.exp(np.clip((overall - _WHITE) / _WHITE_WIDTH, -50, 50)))


def _colour(density, hed, overall, um, pool) -> Described:
    """Means and spread of the stains, on all pixels and on tissue alone; the share of glass."""
    out = {}
    glass = _glass(overall)
    channels = {"R": density[0], "G": density[1], "B": density[2], "H": hed[0], "E": hed[1]}
    tissue = 1 - glass
    means = pool.means(
        [*channels.values(), glass, *(c * tissue for c in (hed[0], hed[1]))], um, whole=True
    )
    for name, row in zip(channels, means[:5], strict=True):
        out |= _named(f"colour.{name}", row)
    out |= _named("glass", np.sqrt(np.maximum(means[5], 0)))
    for name, row in zip("HE", means[6:], strict=True):
        out |= _named(f"tissue.{name}", row / (1 - means[5] + 0.02))
    return out


def _pyramid(name, image, um, pool, first, oriented=True, patterns=False) -> Described:
    """Invariants of Gaussian derivatives of one channel at the scales from `first` on."""
    out = {}
    for level in range(LEVELS):
        smooth = _smooth(image, 1.2)
        label, pixel = f"{name}.{2**level}um", um * 2**level
        if level >= first:
            gradient, hessian = np.split(np.stack(_derivatives(smooth)), [2])
            curvature = _principal(*hessian)
            out |= _texture(label, image, smooth, gradient, curvature, pixel, pool)
            if oriented and level > 0:
                out |= _coherence(label, *gradient, pixel, pool)
            if patterns and 0 < level < LEVELS - 1:
                out |= _shapes(label, *curvature, pixel, pool)
                out |= _patterns(label, image, pixel, pool)
        if level < LEVELS - 1:
            image = _half(smooth)
    return out


def _principal(yy, xx, xy) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half the difference of the two principal second derivatives."""
    return 0.5 * (yy + xx), np.sqrt(0.25 * (xx - yy) ** 2 + xy * xy)


def _texture(name, image, smooth, gradient, curvature, um, pool) -> Described:
    """Level, detail, gradient and curvature of one channel at one scale."""
    (gy, gx), (middle, spread) = gradient, curvature
    energy, zero = gx * gx + gy * gy, np.float32(0)
    low, high = middle - spread, middle + spread
    parts = {
        "blob": np.maximum(-high, zero),
        "dark": np.maximum(-low, zero),
        "light": np.maximum(high, zero),
        "hole": np.maximum(low, zero),
    }
    v = pool.means([smooth, (image - smooth) ** 2, np.sqrt(energy), energy, *parts.values()], um)
    out = _named(f"mean.{name}", v[0])
    out |= _named(f"detail.{name}", np.log(v[1] + _FLOOR))
    out |= _named(f"gradient.{name}", np.log(v[2] + _FLOOR))
    relative = np.sqrt(np.maximum(v[3] - v[2] ** 2, 0)) / (v[2] + 0.3 * _FLOOR)
    out |= _named(f"uneven.{name}", np.log(relative + 0.05))
    for key, row in zip(parts, v[4:], strict=True):
        out |= _named(f"{key}.{name}", np.log(row + _FLOOR))
    return out


def _coherence(name, gy, gx, um, pool) -> Described:
    """How far gradients share a direction: structure tensor over a few pixels and the window."""
    tensor = gx * gx + gy * gy, gx * gx - gy * gy, 2 * gx * gy
    v = pool.means(tensor, um)
    out = _named(f"aligned.{name}", np.hypot(v[1], v[2]) / (v[0] + 1e-6))
    for width in _TENSOR_PX:
        energy, along, across = (_smooth(x, width) for x in tensor)
        strength = np.sqrt(along * along + across * across)
        share, weighted, total = pool.means([strength / (energy + 1e-5), strength, energy], um)
        out |= _named(f"coherence{width}.{name}", share)
        out |= _named(f"fibre{width}.{name}", weighted / (total + 1e-6))
    return out


def _shapes(name, middle, spread, um, pool) -> Described:
    """Histogram of the shape index, from dark dot over edge to bright dot, whatever the contrast.

    Shape index: Koenderink and van Doorn, Surface shape and curvature scales, 1992.
    """
    # The offset sends flat surfaces, whose index is made of rounding, to the middle.
    index = np.arctan2(middle, spread + 0.1 * _FLOOR) * (2 / np.pi)
    bins = np.clip(((index + 1) * (_SHAPE_BINS / 2)).astype(int), 0, _SHAPE_BINS - 1)
    return _shares(f"shape.{name}", pool.shares(bins, _SHAPE_BINS, um))


def _patterns(name, image, um, pool) -> Described:
    """Histogram of local binary patterns of the eight neighbours, uniform, rotation-invariant.

    Reference: Ojala, Pietikainen and Maenpaa, IEEE TPAMI 24(7), 2002. A neighbour must be denser
    by a floor, so that a flat surface gives one pattern and not rounding.
    """
    p = np.pad(image, 1, mode="symmetric")
    n = image.shape[0]
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    bits = np.stack([p[y : y + n, x : x + n] > image + 0.1 * _FLOOR for y, x in ring])
    changes = (bits != np.roll(bits, 1, axis=0)).sum(axis=0)
    labels = np.where(changes <= 2, bits.sum(axis=0), 9)
    return _shares(f"pattern.{name}", pool.shares(labels, 10, um))


def _shares(name: str, shares: np.ndarray) -> Described:
    """Square roots of the share of each label under the windows."""
    out = {}
    for label, row in enumerate(np.sqrt(np.maximum(shares, 0))):
        out |= _named(f"{name}.{label}", row)
    return out


def _granulometry(h: np.ndarray, overall: np.ndarray, um: float, pool: Pool) -> Described:
    """How much stain, or glass, openings of growing size take away: sizes of clumps and lumina."""
    out = {}
    for name, image in (("H", _half(_smooth(h, 1.0))), ("glass", _glass(_half(overall)))):
        before = pool.means([image], 2 * um, whole=True)[0]
        for size_um in _OPENINGS_UM:
            pixels = 2 * round(size_um / (4 * um)) + 1
            opened = ndimage.grey_opening(image, size=(pixels, pixels))
            after = pool.means([opened], 2 * um, whole=True)[0]
            out |= _named(f"opening.{name}.{size_um}um", np.sqrt(np.maximum(before - after, 0)))
            before = after
    return out


def _nuclei(h, e, saturation, um, pool) -> Described:
    """Dark blobs of 2 to 9 micrometres in the haematoxylin: how many, how they look, how they lie.

    Differences of Gaussians stand in for the scale-normalised Laplacian; a nucleus is a local
    maximum of the response of 3 to 4.5 micrometres.
    """
    h, e, saturation, um = _half(h), _half(e), _half(saturation), 2 * um
    blurred = [_smooth(h, sigma / um) for sigma in (1.6, 2.26, 3.2, 4.53, 6.4, 9.0)]
    bands = np.stack([fine - coarse for fine, coarse in itertools.pairwise(blurred)])
    response = bands[1] + bands[2]
    reach = 2 * round(3.0 / um) + 1
    peak = (response == ndimage.maximum_filter(response, size=reach)) & (response > _PEAK)
    rows, columns = np.nonzero(peak)
    at = rows, columns
    strength = response[at]
    out = {}
    above = strength > np.array(_PEAK_BINS)[:, None]
    for least, density in zip(_PEAK_BINS, pool.sums(at, h.shape, um, above * 1.0), strict=True):
        out |= _named(f"nuclei.above{least:g}", np.sqrt(np.maximum(density, 0)))
    sizes = np.arange(len(bands))[:, None]
    clear = np.maximum(bands[:, rows, columns], 0)
    looks = {
        "strength": (strength, 0.1),
        "stain": (blurred[0][at], 0.2),
        "size": ((sizes * clear).sum(axis=0) / (clear.sum(axis=0) + _FLOOR), 2.0),
        "eosin": (_smooth(e, 2.0 / um)[at], 0.1),
        "saturation": (_smooth(saturation, 1.5 / um)[at], 0.3),
        "ring": ((2 * blurred[4] - blurred[2])[at], 0.1),
        "around": (blurred[5][at], 0.1),
    }
    looks |= _arrangement(rows, columns, blurred[2], looks["stain"][0], um)
    trusted = np.clip(strength / 0.05 - 0.5, 0, 1)
    moments = [trusted]
    for values, neutral in looks.values():
        moments += [trusted * (values - neutral), trusted * (values - neutral) ** 2]
    total, *sums = pool.sums(at, h.shape, um, np.stack(moments).astype(np.float64))
    for i, (key, (_, neutral)) in enumerate(looks.items()):
        out |= _weighted(f"nuclei.{key}", total, *sums[2 * i : 2 * i + 2], neutral)
    return out


def _arrangement(rows, columns, blurred, stain, um) -> dict[str, tuple[np.ndarray, float]]:
    """Elongation of each nucleus, its distance to others and its likeness to its neighbours."""
    _, _, yy, xx, xy = (d[rows, columns] for d in _derivatives(blurred))
    long = np.sqrt((xx - yy) ** 2 + 4 * xy * xy) / (np.abs(xx + yy) + _FLOOR)
    long = np.minimum(long, 2.0)
    axis = long * np.exp(1j * np.arctan2(2 * xy, xx - yy))
    near, far = np.full(len(rows), 3.0), np.full(len(rows), 4.0)
    points = np.stack([rows, columns], axis=1).astype(float)
    if len(rows) > _NEIGHBOURS:
        distance = cKDTree(points).query(points, k=_NEIGHBOURS + 1)[0] * um
        near, far = np.log(distance[:, 1]), np.log(distance[:, -1])
    together, unlike = _likeness(points, axis, long, stain, um)
    return {
        "long": (long, 0.3),
        "near": (near, 3.0),
        "far": (far, 4.0),
        "together": (together, 0.3),
        "unlike": (unlike, 0.05),
    }


def _likeness(points, axis, long, stain, um) -> tuple[np.ndarray, np.ndarray]:
    """How far nuclei within _NEAR_UM share an axis, and how much their stain differs."""
    if not len(points):
        return np.zeros(0), np.zeros(0)
    # Squared pixel distances are whole numbers: a radius between two of them leaves no ties.
    radius = np.sqrt(np.floor((_NEAR_UM / um) ** 2) + 0.5)
    a, b = cKDTree(points).query_pairs(radius, output_type="ndarray").T
    senders, receivers, n = np.concatenate([a, b]), np.concatenate([b, a]), len(points)
    others = np.bincount(receivers, minlength=n)
    real = axis.real + np.bincount(receivers, axis.real[senders], n)
    imaginary = axis.imag + np.bincount(receivers, axis.imag[senders], n)
    length = long + np.bincount(receivers, long[senders], n)
    difference = np.bincount(receivers, np.abs(stain[senders] - stain[receivers]), n)
    return np.hypot(real, imaginary) / (length + 0.05), difference / np.maximum(others, 1)


def _weighted(name, total, first, second, neutral) -> Described:
    """Weighted mean and deviation, drawn to `neutral` and zero where there are few nuclei.

    Of the sums of weights, and of the first and second powers of what values are off `neutral`.
    """
    pull = 0.02  # nuclei per (10 um)^2
    mean = first / (total + pull)
    variance = (second - 2 * mean * first + mean * mean * total) / (total + pull)
    deviation = np.sqrt(np.maximum(variance, 0))
    return _named(f"{name}.mean", mean + neutral) | _named(f"{name}.sd", deviation)
