"""Opening HDF5 files that others wrote, with errors that name the file.

What the files hold is known by `embeddings.py`, `image.py` and the readers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from stfm_jax.data import foreign
from stfm_jax.errors import InputError

with contextlib.suppress(ImportError):
    import hdf5plugin  # noqa: F401  the filters of HDF5 that others compress with, where installed


def require_file(path: str | Path, how_to_get: str) -> Path:
    """The path, if a file is there.

    Args:
      how_to_get: one sentence for the message: where such a file comes from.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected a file, found a folder. {how_to_get}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. {how_to_get}")
    return path


@contextlib.contextmanager
def open_hdf5(
    path: str | Path, datasets: Sequence[str], how_to_get: str, how_to_mend: str
) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading and checks that it holds the datasets.

    Args:
      datasets: names that must be in the file.
      how_to_get: for the message when the file is missing.
      how_to_mend: for the message when it is damaged or of another kind.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is empty, damaged, or lacks a dataset; reading damaged data inside the
        `with` block raises it, too.
    """
    path = require_file(path, how_to_get)
    with foreign.reading(path, "a readable HDF5 file", how_to_mend), h5py.File(path, "r") as file:
        absent = [name for name in datasets if name not in file]
        if absent:
            raise InputError(
                f"{path}: expected the datasets {', '.join(datasets)}, but it holds "
                f"{', '.join(sorted(file)) or 'nothing'}; {how_to_mend}"
            )
        yield file


def decode_strings(values: np.ndarray) -> np.ndarray:
    """Strings as HDF5 files hold them ([n] or [n, 1], bytes or str) -> [n] str."""
    flat = np.asarray(values).reshape(-1)
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in flat], dtype=str)
