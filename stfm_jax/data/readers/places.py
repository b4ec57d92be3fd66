"""Where spots lie, by what an AnnData says: `obsm['spatial']` and the columns that go with it."""

from __future__ import annotations

import logging
import re

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
# Names of columns without what is no letter or digit, in lower case.
_X = frozenset(
    "x xcoord xcoords xcoordinate coordx xpixel pixelx xpx xum xcentroid xlocation globalx xaxis "
    "imagecol imagecolumn pxlcol pxlcolinfullres pxlx hex newx".split()
)
_Y = frozenset(
    "y ycoord ycoords ycoordinate coordy ypixel pixely ypx yum ycentroid ylocation globaly yaxis "
    "imagerow pxlrow pxlrowinfullres pxly hey newy".split()
)
_PIXELS = ("pxl_col_in_fullres", "pxl_row_in_fullres")  # x, y
_ALIKE = 0.99  # correlation of an axis with itself in another table [ours]


def numbers(values: object, what: str, where: str) -> np.ndarray:
    """A 2-D array of numbers from what AnnData may hold (array, sparse matrix, DataFrame)."""
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    array = values.toarray() if sp.issparse(values) else np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise InputError(
            f"{where}: expected {what} to be a matrix of numbers, found {array.dtype} of shape "
            f"{array.shape}."
        )
    return array


def coordinates(adata: anndata.AnnData, where: str) -> np.ndarray:
    """Places (x, y) [n, 2] float64 of `obsm['spatial']`; of a table by the names of its columns.

    Pixel columns in `obs` that contradict them are said.

    Raises:
      InputError: no matrix of numbers, or a table whose columns do not say what they are.
    """
    found = adata.obsm["spatial"]
    if isinstance(found, pd.DataFrame):
        found = _by_name(found, where)
    coords = numbers(found, "obsm['spatial']", where).astype(np.float64)
    if set(_PIXELS) <= set(adata.obs) and coords.shape[1] == 2:
        columns = adata.obs[list(_PIXELS)].apply(pd.to_numeric, errors="coerce")
        _compare(coords, columns.to_numpy(np.float64), where)
    return coords


def _by_name(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The columns x and y of a table, in this order."""
    names = {name: re.sub(r"[\W_]+", "", str(name)).lower() for name in table.columns}
    x, y = ([n for n, said in names.items() if said in axis] for axis in (_X, _Y))
    if len(x) == len(y) == 1:
        return table[[x[0], y[0]]]
    counted = [re.fullmatch(r"(?:spatial|coord|dim)?(\d)", said) for said in names.values()]
    if len(counted) == 2 and all(counted):  # as they come out of arrays
        first, second = sorted(names, key=lambda name: names[name])
        return table[[first, second]]
    raise InputError(
        f"{where}: expected the columns x and y in the table obsm['spatial'], found "
        f"{', '.join(map(repr, names))}; name them x and y, or store an array [n, 2] of (x, y)."
    )


def _compare(coords: np.ndarray, columns: np.ndarray, where: str) -> None:
    """Says where columns of `obs` [n, 2] (x, y) are of other places, but for shift and scale."""
    good = np.isfinite(columns).all(axis=1) & np.isfinite(coords).all(axis=1)
    a, b = coords[good], columns[good]
    if len(a) < 3 or min(np.ptp(a, axis=0).min(), np.ptp(b, axis=0).min()) <= 0:
        return
    same, crossed = (
        min(np.corrcoef(a[:, 0], c[:, 0])[0, 1], np.corrcoef(a[:, 1], c[:, 1])[0, 1])
        for c in (b, b[:, ::-1])
    )
    if same >= _ALIKE:
        return
    how = "x and y the other way round" if crossed >= _ALIKE else "other places"
    _LOG.warning(
        "%s: obs[%r] and obs[%r] (x, y) say %s than obsm['spatial'], which is taken; if the map "
        "does not fit the tissue, swap the columns of obsm['spatial']",
        *(where, *_PIXELS, how),
    )
