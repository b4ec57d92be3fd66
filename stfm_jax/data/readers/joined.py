"""Whether an AnnData holds one slide, or several that were joined in one file."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd

from stfm_jax.data import labels
from stfm_jax.data.readers import scanpy_scale
from stfm_jax.errors import InputError

_ARRAY = ["array_row", "array_col"]
_TWICE = 0.01  # share of spots on others' places from which on it is two arrays [ours]


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


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")
