"""Regions of an image at a scale that is asked for, whatever levels its file has.

Pixels are averaged by area, from the coarsest level that is fine enough, a piece at a time: no more
than PIECE_PX of its pixels are held on a side.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.images.image import SlideImage

PIECE_PX = 4096
_ROUNDING = 1.01  # by which a level may be coarser than is asked for: sizes of levels are rounded


def coarsest(image: SlideImage, ratio: float) -> int:
    """The coarsest level whose pixels are at most `ratio` of level 0's; else level 0."""
    fine = [i for i in range(len(image.levels)) if image.ratio(i) <= ratio * _ROUNDING]
    return max(fine, key=image.ratio, default=0)


def resampled(image: SlideImage, ratio: float, box: tuple[float, ...] | None = None) -> np.ndarray:
    """A region with pixels of `ratio` of level 0's, on the grid that begins at the region's corner.

    Args:
      image: whose level is chosen by `coarsest`.
      ratio: pixels of level 0 on the side of one that is returned; below 1 they are repeated.
      box: (left, top, width, height) in pixels of level 0; what lies outside is left out. None:
        all of it.

    Returns:
      [h, w, 3] uint8; the last row and column may reach over the edge, and average what is inside.
    """
    width, height = image.size
    left, top, wide, high = box or (0, 0, width, height)
    right, low = min(left + wide, width), min(top + high, height)
    left, top = max(left, 0), max(top, 0)
    level = coarsest(image, ratio)
    scale = image.levels[level][0] / width, image.levels[level][1] / height
    columns = _edges(left, right, ratio) * scale[0]
    rows = _edges(top, low, ratio) * scale[1]
    out = np.empty((len(rows) - 1, len(columns) - 1, 3), np.uint8)
    step = max(1, int(PIECE_PX / max(ratio * max(scale), 1e-9)))
    for i in range(0, out.shape[0], step):
        for j in range(0, out.shape[1], step):
            here = slice(i, i + step), slice(j, j + step)
            out[here] = _piece(image, level, rows[i : i + step + 1], columns[j : j + step + 1])
    return out


def _edges(first: float, last: float, step: float) -> np.ndarray:
    """first, first + step, ... up to `last`, which ends the last one early."""
    count = max(1, int(np.ceil((last - first) / step - 1e-6)))
    return np.minimum(first + step * np.arange(count + 1), last)


def _piece(image: SlideImage, level: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Means of a level's pixels between edges [h + 1] and [w + 1]: [h, w, 3] uint8."""
    width, height = image.levels[level]
    y, bottom = int(rows[0]), min(int(np.ceil(rows[-1] - 1e-6)), height)
    x, right = int(columns[0]), min(int(np.ceil(columns[-1] - 1e-6)), width)
    pixels = image.read(level, x, y, right - x, bottom - y)
    down, across = _shares(rows - y, bottom - y), _shares(columns - x, right - x)
    h, w = pixels.shape[:2]
    means = (down @ pixels.reshape(h, -1).astype(np.float32)).reshape(-1, w, 3)
    means = across @ means.transpose(1, 0, 2).reshape(w, -1)
    return np.round(means.reshape(len(columns) - 1, -1, 3).transpose(1, 0, 2)).astype(np.uint8)


def _shares(edges: np.ndarray, pixels: int) -> sp.csr_matrix:
    """[m, pixels] each row averages the pixels, with fractions, between two of [m + 1] edges."""
    first = np.clip(np.floor(edges[:-1]).astype(int), 0, pixels - 1)
    last = np.clip(np.ceil(edges[1:]).astype(int), first + 1, pixels)
    most = int((last - first).max())
    index = first[:, None] + np.arange(most)
    overlap = np.minimum(edges[1:, None], index + 1) - np.maximum(edges[:-1, None], index)
    overlap = np.where(index < last[:, None], np.maximum(overlap, 1e-9), 0).astype(np.float32)
    overlap /= overlap.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(first)), most)
    shape = len(first), pixels
    return sp.csr_matrix((overlap.ravel(), (rows, np.minimum(index, pixels - 1).ravel())), shape)
