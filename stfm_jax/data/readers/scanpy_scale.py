"""Micrometres per pixel of a Visium slide as scanpy and squidpy leave it in an AnnData.

`uns['spatial'][<library>]['scalefactors']` has what scalefactors_json.json has; coordinates are
pixels (x, y) of the full-resolution image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.data.lattice import is_hexagonal
from stfm_jax.data.readers import pitch, space_ranger, visium
from stfm_jax.errors import InputError

_LIBRARY = "library_id"
_ARRAY = ("array_col", "array_row")
_BY_DISTANCE = "the distance of neighbouring spots"


def scalefactors(adata: anndata.AnnData, where: str) -> Mapping[str, Any] | None:
    """The scale factors of the one library; None where the file has none.

    Raises:
      InputError: there are several libraries.
    """
    said = adata.uns.get("spatial")
    if not isinstance(said, Mapping):
        return None
    found = {
        str(library): about["scalefactors"]
        for library, about in said.items()
        if isinstance(about, Mapping) and isinstance(about.get("scalefactors"), Mapping)
    }
    if len(found) > 1 and _LIBRARY in adata.obs:  # of files that were taken apart all are kept
        own = {str(library) for library in adata.obs[_LIBRARY].unique()}
        found = {name: factors for name, factors in found.items() if name in own} or found
    if len(found) > 1:
        raise InputError(
            f"{where}: expected one slide, found {len(found)} in uns['spatial'] "
            f"({', '.join(list(found)[:4])}); write each into a file of its own, with its entry of "
            "uns['spatial'] alone."
        )
    return next(iter(found.values()), None)


def scales(adata: anndata.AnnData, where: str) -> dict[str, float | None]:
    """Micrometres per pixel by their source, the most trusted first.

    Without scale factors what an array or a hexagonal lattice says, which is Visium's; or nothing.

    The distance of spots is taken where the spots' diameter agrees with it, else the diameter: the
    spots that are there may be some of a slide. [ours]
    """
    factors = scalefactors(adata, where)
    if factors is None:
        return {_BY_DISTANCE: scale} if (scale := _by_array(adata) or _by_kind(adata)) else {}
    exact = _number(factors, "microns_per_pixel")
    if exact is not None:
        return {"microns_per_pixel of uns['spatial']": exact}
    diameter = _number(factors, "spot_diameter_fullres")
    if diameter is None:
        return {}
    by_pitch = _by_array(adata) or _by_distance(adata)
    if by_pitch is None:
        return {"spot_diameter_fullres of uns['spatial']": visium.DIAMETERS_UM[0] / diameter}
    said = visium.by_diameter(diameter, by_pitch)
    found = {
        _BY_DISTANCE: by_pitch,
        "spot_diameter_fullres of uns['spatial']": said,
    }
    return found if pitch.agree(said, by_pitch) else dict(reversed(found.items()))


def _number(factors: Mapping[str, Any], key: str) -> float | None:
    """As HDF5 gives it: maybe an array of one."""
    try:
        return space_ranger.positive({key: float(np.asarray(factors[key]).item())}, key)
    except (KeyError, TypeError, ValueError):
        return None


def _coords(adata: anndata.AnnData) -> np.ndarray:
    """Places that are finite, and which these are."""
    try:
        coords = np.asarray(adata.obsm["spatial"], np.float64)
    except (TypeError, ValueError):
        return np.zeros((0, 2))
    return coords if coords.ndim == 2 and np.isfinite(coords).all() else np.zeros((0, 2))


def _by_array(adata: anndata.AnnData) -> float | None:
    coords = _coords(adata)
    if not set(_ARRAY) <= set(adata.obs) or len(coords) < 2:
        return None
    try:
        array = adata.obs[list(_ARRAY)].to_numpy(np.float64)
        return 1.0 / pitch.similarity(array * visium.STEP_UM, coords, "", "", True)[0]
    except (InputError, TypeError, ValueError):  # of another array
        return None


def _by_kind(adata: anndata.AnnData) -> float | None:
    """Of a hexagonal lattice, which is Visium's; children are finer."""
    coords = _coords(adata)
    of_visium = "parent" not in adata.obs and is_hexagonal(coords)
    return _by_distance(adata) if of_visium else None


def _by_distance(adata: anndata.AnnData) -> float | None:
    coords = _coords(adata)
    if len(coords) < 2:
        return None
    between = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
    return visium.PITCH_UM / between if between > 0 else None
