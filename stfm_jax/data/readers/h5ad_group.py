"""What is read of an AnnData's file: only what a slide needs, from an HDF5 file or a zarr group.

Elements that nobody here looks at may be of any encoding. Files of anndata before 0.8 are read too:
tables as arrays of records (before 0.7), or as groups that do not say what they are, with
categories apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import read_elem

from stfm_jax.data import feature_blocks, feature_store
from stfm_jax.data.counts import are_counts
from stfm_jax.data.hdf5 import PACKED, require_room_for
from stfm_jax.data.labels import is_slide_column
from stfm_jax.data.panel import GENE_COLUMNS
from stfm_jax.data.sparse import canonical
from stfm_jax.errors import InputError
from stfm_jax.runtime.memory import require_room

Group = h5py.Group | zarr.Group
_LOG = logging.getLogger("stfm_jax")
OBS = (  # columns that are looked at, beside those that name a slide
    *("in_tissue", "patient", "section", "parent", "measured", "z_um"),
    *("array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"),
)
UNS = ("spatial_unit", "um_per_px", "encoder", "encoders", "z_um", "spatialdata_attrs")
PLACES = ("spatial", "spatial3d")
_INDEX = ("_index", "index")  # of a table that does not say where its names are
_CATEGORIES = "__categories"  # of a table's columns, apart
_DENSE_AT_ONCE = 1 << 24  # numbers of a matrix stored dense
_SAMPLE = 1 << 20  # values by which counts are told from others
_RAW = ("raw/X", "raw/var"), ("raw.X", "raw.var")


def is_wanted(column: str) -> bool:
    """Whether a column of `obs` is looked at."""
    return column in OBS or is_slide_column(column)


def scalefactors(spatial: Any) -> dict[str, Any] | None:
    """What scanpy keeps of a slide's libraries in `uns['spatial']`, without their pictures."""
    if not isinstance(spatial, Mapping | h5py.Group | zarr.Group):
        return None
    return {
        str(name): {"scalefactors": _dict(spatial[name]["scalefactors"])}
        for name in spatial
        if isinstance(spatial[name], Mapping | h5py.Group | zarr.Group)
        and "scalefactors" in spatial[name]
    }


def attributes(group: Group, key: str) -> dict[str, Any]:
    """What an entry of `uns` says; nothing where it is absent."""
    return _dict(group["uns"][key]) if "uns" in group and key in group["uns"] else {}


def annotations(group: Group, features_key: str | None, also: Iterable[str] = ()) -> Any:
    """`obs`, `uns` and `obsm` as far as a slide needs them; an AnnData without counts.

    Other elements of `obsm` are left empty, for messages that name them.

    Args:
      group: of the AnnData.
      features_key: of `obsm`; None: no features.
      also: columns of `obs` that are needed too.
    """
    also = set(also)
    obs = table(group["obs"], lambda name: is_wanted(name) or name in also, group)
    obsm = {}
    there = group["obsm"] if "obsm" in group else {}
    for key in there:
        needed = key in PLACES or (features_key is not None and key == features_key)
        several = features_key is not None and features_key not in there
        needed |= several and key.startswith(f"{feature_blocks.KEY}_")
        obsm[key] = _aligned(there[key], obs) if needed else np.empty((len(obs), 0))
    return anndata.AnnData(obs=obs, uns=_uns(group), obsm=obsm)


def whole(group: Group, features_key: str, layer: str, also: Iterable[str] = ()) -> Any:
    """`annotations` with the counts, and empty layers beside them.

    Where the file has the default layer not, counts are `X`, or those of `.raw` if `X` has none.
    """
    adata = annotations(group, features_key, also)
    return with_counts(adata, group, layer)


def with_counts(adata: anndata.AnnData, group: Group, layer: str) -> anndata.AnnData:
    """The annotations of a file with its counts; see `whole`."""
    place, of = counts_of(group, layer)
    if of is None:
        return adata
    var = table(group[of], GENE_COLUMNS.__contains__, group)
    stored = None if place is None else _sparse(group[place])
    there = [str(key) for key in group["layers"]] if "layers" in group else []
    layers = {key: sp.csr_matrix((adata.n_obs, len(var)), dtype=np.float32) for key in there}
    if place == f"layers/{layer}":
        layers[layer], stored = stored, None
    return anndata.AnnData(stored, adata.obs, var, uns=adata.uns, obsm=adata.obsm, layers=layers)


def counts_of(group: Group, layer: str) -> tuple[str | None, str | None]:
    """Where the counts are, and the table of their genes; None where there is nothing."""
    var = "var" if "var" in group else None
    if layer and f"layers/{layer}" in group:
        return f"layers/{layer}", var
    place = "X" if "X" in group and _shape(group["X"]) is not None else None
    raw = next(((x, genes) for x, genes in _RAW if x in group and genes in group), None)
    if raw is None or (place is not None and are_counts(_some_values(group[place]))):
        return place, var
    if not are_counts(_some_values(group[raw[0]])):
        return place, var
    _LOG.info("%s: counts are those of .raw, X has none", _where(group))
    return raw


def table(element: Any, wanted: Callable[[str], bool], group: Group | None = None) -> pd.DataFrame:
    """A table of a file, by its names, with the columns that are wanted.

    Raises:
      InputError: it has no names.
    """
    if not isinstance(element, Mapping | h5py.Group | zarr.Group):
        _require_room(element)
        return _of_records(element[()], wanted, group)
    said = element.attrs.get("_index")
    said = said.decode() if isinstance(said, bytes) else said
    index = next((name for name in (said, *_INDEX) if name and name in element), None)
    if index is None:
        raise InputError(
            f"{_where(element)}: expected the names of {element.name.strip('/')} in _index, found "
            f"{', '.join(sorted(element)[:6]) or 'nothing'}; write the file again with anndata."
        )
    _require_room(element[index])
    names = [name for name in element if name not in (index, _CATEGORIES) and wanted(name)]
    columns = {name: _column(element, name) for name in names}
    return pd.DataFrame(columns, index=pd.Index(_texts(_column(element, index))))


def _of_records(
    records: np.ndarray, wanted: Callable[[str], bool], group: Group | None
) -> pd.DataFrame:
    """A table of anndata before 0.7; its categories are in `uns`."""
    index = next((name for name in _INDEX if name in records.dtype.names), records.dtype.names[0])
    columns = {}
    for name in records.dtype.names:
        if name == index or not wanted(name):
            continue
        categories = f"uns/{name}_categories"
        if group is not None and categories in group:
            kinds = _texts(np.asarray(group[categories][()]))
            columns[name] = pd.Categorical.from_codes(records[name], kinds)
        else:
            columns[name] = _decoded(records[name])
    return pd.DataFrame(columns, index=pd.Index(_texts(records[index])))


def _column(group: Group, name: str) -> Any:
    element = group[name]
    _require_room(element)
    categories = element.attrs.get("categories")
    if isinstance(categories, h5py.Reference):
        kinds = element.file[categories]
    elif _CATEGORIES in group and name in group[_CATEGORIES]:
        kinds = group[_CATEGORIES][name]
    else:
        return _decoded(read_elem(element))
    return pd.Categorical.from_codes(np.asarray(element[()]), _decoded(read_elem(kinds)))


def _decoded(values: Any) -> Any:
    """Texts of bytes as texts, and of nullable kinds as objects; others as they are."""
    if isinstance(values, pd.api.extensions.ExtensionArray) and not hasattr(values, "categories"):
        return values.astype(object)
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    return np.array(_texts(values), object) if kind == "S" else values


def _texts(values: Iterable[Any]) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _aligned(element: Any, obs: pd.DataFrame) -> Any:
    """An element of `obsm`; a table of places keeps its columns' names."""
    _require_room(element)
    found = read_elem(element)
    if isinstance(found, np.ndarray) and found.dtype.names:  # a table before 0.7
        found = pd.DataFrame({n: found[n] for n in found.dtype.names if n not in _INDEX})
        found.index = obs.index
    return found


def _uns(group: Group) -> dict[str, Any]:
    if "uns" not in group:
        return {}
    there = group["uns"]
    found = {key: _value(there[key]) for key in UNS if key in there}
    if "spatial" in there and (libraries := scalefactors(there["spatial"])) is not None:
        found["spatial"] = libraries
    return found


def _value(element: Any) -> Any:
    if isinstance(element, Mapping | h5py.Group | zarr.Group):
        return _dict(element)
    _require_room(element)
    value = read_elem(element)
    if isinstance(value, np.ndarray) and value.size == 1:  # written from R
        value = value.reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else value


def _dict(element: Any) -> dict[str, Any]:
    stored = isinstance(element, h5py.Group | zarr.Group)
    return {str(k): _value(element[k]) if stored else element[k] for k in element}


def _shape(element: Any) -> tuple[int, ...] | None:
    """Of a stored matrix; None of nothing."""
    if isinstance(element, h5py.Dataset | zarr.Array):
        return element.shape or None
    return tuple(element.attrs.get("shape", element.attrs.get("h5sparse_shape", ()))) or (0, 0)


def _some_values(element: Any) -> np.ndarray:
    """Some numbers of a stored matrix."""
    if isinstance(element, h5py.Dataset | zarr.Array):
        rows = max(1, _SAMPLE // max(1, element.shape[-1])) if element.ndim == 2 else _SAMPLE
        return np.asarray(element[:rows])
    return np.asarray(element["data"][:_SAMPLE]) if "data" in element else np.zeros(0)


def _sparse(element: Any) -> sp.csr_matrix:
    """A stored matrix; one that is stored dense is read in blocks."""
    if not isinstance(element, h5py.Dataset | zarr.Array):
        _require_room(element)
        return canonical(read_elem(element), _where(element))
    if element.ndim != 2 or element.dtype.kind not in "fiub":
        raise InputError(
            f"{_where(element)}: expected counts to be a matrix of numbers, found {element.dtype} "
            f"of shape {element.shape}."
        )
    if isinstance(element, zarr.Array) and element.nbytes > PACKED * element.nbytes_stored():
        _require_room(element)  # read in blocks, but never written
    size = max(1, _DENSE_AT_ONCE // max(1, element.shape[1]))
    spans = feature_store.spans(element.shape[0], size)
    blocks = [sp.csr_matrix(np.asarray(element[i[0] : i[-1] + 1])) for i in spans]
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix(element.shape)


def _require_room(element: Any) -> None:
    """Raises InputError where what is to be read whole does not fit into memory."""
    if isinstance(element, h5py.HLObject):
        require_room_for(element)
        return
    parts = [element] if isinstance(element, zarr.Array) else dict(element.members(None)).values()
    require_room(sum(p.nbytes for p in parts if isinstance(p, zarr.Array)), _where(element))


def _where(element: Any) -> str:
    if isinstance(element, h5py.HLObject):
        return str(element.file.filename)
    return str(getattr(element, "store_path", "the store"))
