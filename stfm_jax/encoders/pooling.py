"""How the built-in descriptor averages maps around a spot: in a patch, or over a region at once.

A window is a Gaussian, or flat, over a square around the spot. `PatchPool` has the one spot in the
middle of a patch, and gives a number for each map and window. `CellPool` has many spots of a
region, and gives [n] numbers: maps are first averaged in cells of CELL_UM, much finer than windows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

WINDOWS_UM = (50.0, 90.0)  # standard deviations of the Gaussian windows around the spot
WINDOW_NAMES = (*(f"g{w:.0f}" for w in WINDOWS_UM), "all")
CELL_UM = 8.0


class PatchPool:
    """Of a square patch whose middle is the spot."""

    def means(self, images: Sequence[np.ndarray], um: float, whole: bool = False) -> np.ndarray:
        """Means [len(images), windows] of images of one size; `whole`: under the flat one too."""
        windows = _windows(images[0].shape[0], um)
        flat = np.stack([image.ravel() for image in images])
        return flat @ (windows if whole else windows[:, : len(WINDOWS_UM)])

    def shares(self, labels: np.ndarray, count: int, um: float) -> np.ndarray:
        """Share [count, windows] of each label 0 .. count - 1 under the Gaussian windows."""
        windows = _windows(labels.shape[0], um)[:, : len(WINDOWS_UM)]
        shares = [np.bincount(labels.ravel(), w, minlength=count) for w in windows.T]
        return np.stack(shares, axis=1)

    def sums(self, at, shape: tuple[int, int], um: float, values: np.ndarray) -> np.ndarray:
        """Sums [v, windows] of values [v, m] at pixels, by windows of mean 1 (10 um)^-2."""
        weights = _windows(shape[0], um).reshape(*shape, -1)[at] * (100.0 / um**2)
        return values @ weights


class CellPool:
    """Of many spots in a square region whose sides are whole cells."""

    def __init__(self, side_um: float, spots_um: np.ndarray, field_um: float):
        """
        Args:
          side_um: of the region.
          spots_um: [n, 2] (x, y) from the region's corner, at least half a field inside.
          field_um: side of the square that windows reach over.
        """
        self._cells = round(side_um / CELL_UM)
        place = spots_um[:, ::-1] / CELL_UM - 0.5  # (y, x), in cells from the first one's centre
        first = np.floor(place).astype(int)
        self._low = first.min(axis=0)
        high = first.max(axis=0) + 1
        self._corner, self._share = (first - self._low).T, (place - first).T.astype(np.float32)
        lines = [np.arange(a, b + 1) for a, b in zip(self._low, high, strict=True)]
        self._kernels = [
            [_kernel(line, self._cells, sigma, field_um) for line in lines]
            for sigma in (*WINDOWS_UM, None)
        ]

    def means(self, images: Sequence[np.ndarray], um: float, whole: bool = False) -> np.ndarray:
        """Means [len(images), windows, n]; see `PatchPool.means`."""
        return self._windowed(np.stack([self._in_cells(image, um) for image in images]), whole)

    def shares(self, labels: np.ndarray, count: int, um: float) -> np.ndarray:
        """Shares [count, windows, n]; see `PatchPool.shares`."""
        return self.means([(labels == i).astype(np.float32) for i in range(count)], um)

    def sums(self, at, shape: tuple[int, int], um: float, values: np.ndarray) -> np.ndarray:
        """Sums [v, windows, n]; see `PatchPool.sums`."""
        rows, columns = (np.floor(i * (um / CELL_UM)).astype(int) for i in at)
        cell, n = rows * self._cells + columns, self._cells
        cells = [np.bincount(cell, row, minlength=n * n).reshape(n, n) for row in values]
        return self._windowed(np.stack(cells), True) * (100.0 / CELL_UM**2)

    def _in_cells(self, image: np.ndarray, um: float) -> np.ndarray:
        """Means in cells, [cells, cells]; pixels larger than these are repeated."""
        n, pixels = self._cells, image.shape[0]
        if pixels < n:
            return np.repeat(np.repeat(image, n // pixels, axis=0), n // pixels, axis=1)
        k = pixels // n
        return image.reshape(n, k, n, k).mean(axis=(1, 3), dtype=np.float32)

    def _windowed(self, cells: np.ndarray, whole: bool) -> np.ndarray:
        """Means [m, windows, n] of cells [m, cells, cells] around the spots."""
        kernels = self._kernels if whole else self._kernels[: len(WINDOWS_UM)]
        cells = cells.astype(np.float32, copy=False)
        return np.stack([self._at_spots(down @ cells @ over.T) for down, over in kernels], axis=1)

    def _at_spots(self, blurred: np.ndarray) -> np.ndarray:
        (y, x), (v, u) = self._corner, self._share
        upper = blurred[:, y, x] * (1 - u) + blurred[:, y, x + 1] * u
        lower = blurred[:, y + 1, x] * (1 - u) + blurred[:, y + 1, x + 1] * u
        return upper * (1 - v) + lower * v


def _kernel(line: np.ndarray, cells: int, sigma: float | None, field_um: float) -> np.ndarray:
    """[len(line), cells]: each row a window around a cell's centre, cut off at half a field."""
    offset = CELL_UM * (np.arange(cells) - line[:, None])
    inside = np.minimum(offset + CELL_UM / 2, field_um / 2) - np.maximum(
        offset - CELL_UM / 2, -field_um / 2
    )
    weights = np.maximum(inside, 0) * (1 if sigma is None else np.exp(-0.5 * (offset / sigma) ** 2))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _windows(side: int, um: float) -> np.ndarray:
    """[side * side, windows] weights, each column summing to one."""
    axis2 = ((np.arange(side) - (side - 1) / 2) * um) ** 2
    radius2 = (axis2[:, None] + axis2).ravel()  # square micrometres from the centre
    columns = [np.exp(-radius2 / (2 * w * w)) for w in WINDOWS_UM] + [np.ones_like(radius2)]
    return np.stack([c / c.sum() for c in columns], axis=1).astype(np.float32)
