"""Features of a slide's spots, in memory or in an HDF5 file, gone through block by block.

A million spots of 1,024 features are 4 GiB. In a file they stay there: whoever needs them goes
through `blocks`, in whatever order these come, and keeps what is smaller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from stfm_jax.data.hdf5 import open_hdf5
from stfm_jax.errors import InputError

BLOCK = 16_384  # spots looked at together


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """Rows of a matrix in an HDF5 file, one for each of n spots.

    The file is open while its blocks are gone through, and at no other time. `np.asarray` reads
    all rows, as float32.
    """

    path: Path
    dataset: str  # name of the matrix in the file
    stored: int  # rows of the matrix
    width: int  # its columns
    rows: np.ndarray  # [n] int64, the row of each spot, none twice

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.width

    @property
    def ndim(self) -> int:
        return 2

    @property
    def where(self) -> str:
        return f"{self.path}: {self.dataset}"

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        out = np.empty(self.shape, dtype or np.float32)
        for spots, values in self.blocks():
            out[spots] = values
        return out

    def take(self, index: np.ndarray) -> StoredFeatures:
        """The rows of some of the spots, [m] integers; nothing is read."""
        return dataclasses.replace(self, rows=self.rows[index])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Spots and rows as `blocks`, in the file's order; it is read once from front to back.

        Raises:
          FileNotFoundError, InputError: the file is gone or damaged, or a block holds NaN or
            infinity.
        """
        spot = np.full(self.stored, -1, np.int64)
        spot[self.rows] = np.arange(len(self.rows))
        with open_hdf5(self.path, (self.dataset,), "Get it again.", "get it again.") as file:
            matrix = file[self.dataset]
            for start in range(0, self.stored, BLOCK):
                wanted = spot[start : start + BLOCK]
                here = wanted >= 0
                if here.any():
                    values = matrix[start : start + BLOCK].astype(np.float32, copy=False)
                    values = values if here.all() else values[here]
                    check_finite(values, self.where)
                    yield wanted[here], values


Features = np.ndarray | StoredFeatures


def stored_features(matrix: h5py.Dataset, where: str) -> StoredFeatures:
    """All rows of a matrix in an open file.

    Raises:
      InputError: it is no matrix of numbers.
    """
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        raise InputError(
            f"{where}: expected {matrix.name.lstrip('/')} to be a matrix of numbers, found "
            f"{matrix.dtype} of shape {matrix.shape}."
        )
    stored, width = matrix.shape
    path = Path(matrix.file.filename)
    return StoredFeatures(path, matrix.name.lstrip("/"), stored, width, np.arange(stored))


def take(features: Features, index: np.ndarray) -> Features:
    """The rows of some of the spots, [m] integers; of the same kind as `features`."""
    return features.take(index) if isinstance(features, StoredFeatures) else features[index]


def spans(n: int, size: int = 0) -> Iterator[np.ndarray]:
    """0 ... n - 1 in blocks of at most `size`, or BLOCK."""
    size = size or BLOCK
    return (np.arange(i, min(i + size, n)) for i in range(0, n, size))


def blocks(features: Features) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some spots [m] and their rows [m, f], at most BLOCK at a time, until every spot was there.

    What is taken from them must not depend on the order: it is that of the memory or the file.
    """
    if isinstance(features, StoredFeatures):
        yield from features.blocks()
    else:
        for spots in spans(len(features)):
            yield spots, features[spots[0] : spots[-1] + 1]


def check_finite(features: np.ndarray, where: str) -> None:
    """Raises InputError where features [n, f] in memory hold NaN or infinity."""
    bad = sum(int((~np.isfinite(x).all(axis=1)).sum()) for _, x in blocks(features))
    if bad:
        raise InputError(
            f"{where}: features of {bad} spots hold NaN or infinity; embed the slide again or "
            "drop those spots."
        )
