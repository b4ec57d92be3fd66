"""Whether an AnnData holds one slide, or several that were joined in one file."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from stfm_jax.data import labels
from stfm_jax.data.readers import scanpy_scale
from stfm_jax.errors import InputError

_ARRAY = ["array_row", "array_col"]
_TWICE = 0.01  # share of spots on others' places from which on it is two arrays [ours]
# [ours] Two arrays over one another: spots nearer than this share of the distance to the next but
# one, how many there must be, and how much alike, and how mostly, their steps.
_CLOSE, _SHARED, _ALIKE, _MOSTLY, _MANY = 0.75, 0.05, 0.15, 0.8, 20


def require_one_slide(adata: anndata.AnnData, where: str) -> None:
    """Refuses an AnnData in which several slides were joined.

    They are known by columns that name slides, entries of `uns['spatial']`, what stands around
    barcodes (`-1`, `-2`), or places of one array that occur twice.

    Raises:
      InputError: says by what, and how to take them apart.
    """
    for name in filter(labels.is_slide_column, adata.obs):
        found = labels.several(adata.obs[name])
        if found:
            raise InputError(
                f"{where}: expected one slide, found {len(found)} in obs[{name!r}] "
                f"({_some(found)}); write each into a file of its own, as adata[adata.obs[{name!r}]"
                f" == {found[0]!r}], or as a stack name them in obs['section']; if the column "
                "names no slides, take it out."
            )
    scanpy_scale.scalefactors(adata, where)
    if "parent" in adata.obs:  # children are named after their parents
        return
    found = labels.marks(adata.obs_names)
    if found:
        raise InputError(
            f"{where}: expected one slide, found barcodes of {len(found)} ({_some(found)} around "
            "them); write each into a file of its own, or as a stack name them in obs['section']."
        )
    _require_one_array(adata.obs, where)
    coords = np.asarray(adata.obsm["spatial"]) if "spatial" in adata.obsm else np.zeros((0, 2))
    if coords.ndim == 2 and coords.dtype.kind in "fiu" and np.isfinite(coords).all():
        _require_one_lattice(coords[:, :2].astype(np.float64), where)


def _require_one_array(obs: pd.DataFrame, where: str) -> None:
    if not set(_ARRAY) <= set(obs):
        return
    places = obs[_ARRAY].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    places = places[np.isfinite(places).all(axis=1)]
    twice = len(places) - len(np.unique(places, axis=0))
    if twice > _TWICE * len(obs):
        raise InputError(
            f"{where}: expected one slide, found {twice} of {len(obs)} spots on a place of the "
            "array (array_row, array_col) that another has; write each slide into a file of its "
            "own, or as a stack name them in obs['section']."
        )


def _require_one_lattice(coords: np.ndarray, where: str) -> None:
    """Refuses two lattices that lie over one another: a near spot is always the same step away."""
    if len(coords) < _MANY or coords.shape[1] < 2:
        return
    distance, nearest = cKDTree(coords).query(coords, k=3)
    close = distance[:, 1] < _CLOSE * np.median(distance[:, 2])
    if close.sum() < max(_MANY / 2, _SHARED * len(coords)):
        return
    steps = coords[nearest[close, 1]] - coords[close]
    steps *= np.where(steps[:, :1] < 0, -1, 1) * np.where(
        (np.abs(steps[:, :1]) < 1e-9) & (steps[:, 1:] < 0), -1, 1
    )
    common = np.median(steps, axis=0)
    same = np.linalg.norm(steps - common, axis=1) < _ALIKE * np.linalg.norm(common)
    if same.mean() >= _MOSTLY:
        raise InputError(
            f"{where}: expected one slide, found {int(close.sum())} of {len(coords)} spots "
            f"{np.linalg.norm(common):.3g} away from another one, all in one direction: two arrays "
            "that lie over one another; write each slide into a file of its own, or as a stack "
            "name them in obs['section']."
        )


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")
