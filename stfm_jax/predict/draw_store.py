"""Room for the draws of a slide until their spread is computed, spot by spot."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

IN_MEMORY = 1 << 28  # bytes of draws; more of them go into a file


class DrawStore:
    """Draws [n, g] one after the other, and then all draws of some spots.

    Over IN_MEMORY bytes they lie in a file that has no name, so nothing is left of it however the
    process ends.
    """

    def __init__(self, folder: Path, num_spots: int, num_genes: int):
        """Makes the file, if one is needed, in a folder."""
        self._shape = num_spots, num_genes
        self._count = 0
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)

    def __enter__(self) -> DrawStore:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def append(self, draw: np.ndarray) -> None:
        """Adds a draw [n, g].

        Raises:
          ValueError: one of another shape.
          OSError: the disk is full.
        """
        if draw.shape != self._shape:
            raise ValueError(f"expected a draw of shape {self._shape}, found {draw.shape}.")
        self._file.write(np.ascontiguousarray(draw, np.float32).data)
        self._count += 1

    def read(self, first: int, last: int) -> np.ndarray:
        """All draws of the spots from `first` to before `last`, [draws, m, g]."""
        n, g = self._shape
        out = np.empty((self._count, last - first, g), np.float32)
        for i, draw in enumerate(out):
            self._file.seek(4 * g * (i * n + first))
            draw[:] = np.frombuffer(self._file.read(draw.nbytes), np.float32).reshape(draw.shape)
        return out
