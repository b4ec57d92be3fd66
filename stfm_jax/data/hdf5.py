"""Opening HDF5 files that others wrote, with errors that name the file.

What the files hold is known by `embeddings.py`, `image.py` and the readers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from stfm_jax.data import foreign
from stfm_jax.errors import InputError
from stfm_jax.runtime.memory import GIB, available_memory, require_room, too_large

PACKED = 2000  # bytes that one stored one makes at most; Deflate's limit is 1,032

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
def opened(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file of others, open for reading.

    Raises:
      InputError: a part of it is kept in another file, or claims what memory cannot hold.
    """
    with h5py.File(path, "r") as file:
        free = available_memory()
        for dataset in _datasets(file):
            outside = _kept_elsewhere(dataset)
            if outside:
                raise InputError(_outside(path, dataset.name, outside))
            # What is read in blocks may be larger than memory; what was never written may not.
            size = _nbytes(dataset)
            if size > free and size > PACKED * dataset.id.get_storage_size():
                raise InputError(too_large(path, _said(dataset), free))
        yield file


def _nbytes(dataset: h5py.Dataset) -> int:
    return 0 if dataset.shape is None else dataset.nbytes


def _said(dataset: h5py.Dataset) -> str:
    gib = f"{dataset.nbytes / GIB:,.1f} GiB"
    return f"{gib} ({dataset.name}, {' x '.join(map(str, dataset.shape))} of {dataset.dtype})"


def require_room_for(element: h5py.Group | h5py.Dataset, but: Collection[str] = ()) -> None:
    """Raises InputError where the arrays of an open file's element do not fit into memory.

    Args:
      but: names of arrays in it that are read some at a time.
    """
    found = [element] if isinstance(element, h5py.Dataset) else _datasets(element)
    left_out = {f"{element.name.rstrip('/')}/{name}" for name in but}
    require_room(sum(_nbytes(d) for d in found if d.name not in left_out), element.file.filename)


def _datasets(group: h5py.Group) -> Iterator[h5py.Dataset]:
    """All arrays below a group of a file, each once, none by a link to another file.

    Raises:
      InputError: there is such a link.
    """
    waiting, seen = [group], set()
    while waiting:
        here = waiting.pop()
        for name in here:
            link = here.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                where = f"{here.name.rstrip('/')}/{name}"
                raise InputError(_outside(here.file.filename, where, link.filename))
            if not isinstance(link, h5py.HardLink):
                continue  # leads to a place in this file, which is gone to by its own name
            there = here[name]
            address = h5py.h5o.get_info(there.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(there, h5py.Group):
                waiting.append(there)
            elif isinstance(there, h5py.Dataset):
                yield there


def _kept_elsewhere(dataset: h5py.Dataset) -> str:
    """The other file that holds values of an array; "" where none does."""
    if dataset.external:
        return str(dataset.external[0][0])
    sources = dataset.virtual_sources() if dataset.is_virtual else ()
    return next((source.file_name for source in sources if source.file_name != "."), "")


def _outside(path: str | Path, name: str, target: str) -> str:
    return (
        f"{path}: {name} lies in another file ({target}), which is not followed; write a file that "
        "holds all of it (as h5repack does, or anndata by read and write)."
    )


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
    with foreign.reading(path, "a readable HDF5 file", how_to_mend), opened(path) as file:
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
