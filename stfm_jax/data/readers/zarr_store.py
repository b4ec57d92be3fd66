"""AnnData in zarr stores, a folder `.zarr` or a `.zarr.zip`, of formats 2 and 3.

Read whole: what stays in an `.h5ad` until it is needed does not here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata
import zarr

from stfm_jax.data import foreign
from stfm_jax.data.readers import h5ad_group
from stfm_jax.errors import InputError

SUFFIXES = (".zarr", ".zarr.zip")
_HEADS = (".zattrs", ".zgroup", "zarr.json")


def is_store(path: str | Path) -> bool:
    """Whether a path names a zarr store, by its name or what lies in it."""
    path = Path(path)
    named = path.name.lower().rstrip("/").endswith(SUFFIXES)
    inside = path.is_dir() and any((path / head).is_file() for head in _HEADS)
    return named or inside or root_of(path) != path


def root_of(path: str | Path) -> Path:
    """The store of a path; of a table of SpatialData, `X.zarr/tables/<table>`, that around it."""
    path = Path(path)
    around = path.parent.parent
    return around if path.parent.name == "tables" and is_store(around) else path


def name_of(path: str | Path) -> str:
    """A slide's name by that of its store, or of another file."""
    path = root_of(path)
    ends = [suffix for suffix in SUFFIXES if path.name.endswith(suffix)]
    return path.name.removesuffix(ends[-1]) if ends else path.stem


def open_group(path: str | Path) -> zarr.Group:
    """The root of a store.

    Raises:
      FileNotFoundError: there is no such store.
      InputError: it is damaged, or no zarr store.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such store. Give the path of a .zarr folder.")
    with reading(path):
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        return zarr.open_group(store=store, mode="r")


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What reading a store may raise, as an error that names it."""
    advice = "get it again, or write it with anndata."
    with foreign.reading(path, "a zarr store with an AnnData", advice), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        warnings.filterwarnings("ignore", message=".*not recognized as a component")
        yield


def load(
    path: str | Path,
    features_key: str = "features",
    counts_layer: str = "counts",
    also: Iterable[str] = (),
) -> anndata.AnnData:
    """The AnnData that a store holds, as far as a slide needs it; see `h5ad_group.whole`.

    Raises:
      FileNotFoundError: there is no such store.
      InputError: it is damaged, or holds no AnnData.
    """
    with reading(path):
        group = open_group(path)
        if group.attrs.get("encoding-type") != "anndata" and not {"obs", "var"} <= set(group):
            raise InputError(
                f"{path}: expected the AnnData of a slide (obs, var, obsm), found "
                f"{', '.join(sorted(group)) or 'nothing'}."
            )
        return h5ad_group.whole(group, features_key, counts_layer, also)
