"""What each element of an AnnData object says about a slide, checked.

Which elements make a slide is the matter of `h5ad_slide.py`, files are that of `h5ad.py`. In every
function `where` is how messages name the slide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import anndata
import numpy as np
import scipy.sparse as sp

from stfm_jax.data import feature_blocks, labels
from stfm_jax.data.counts import is_count, rounded
from stfm_jax.data.images.scale import LEAST
from stfm_jax.data.panel import gene_names, sum_duplicates
from stfm_jax.data.readers import pitch, scanpy_scale
from stfm_jax.data.readers.places import numbers
from stfm_jax.data.sparse import canonical, check_structure
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), "um"),
    **dict.fromkeys(("micrometre", "micrometres"), "um"),
    **dict.fromkeys(("pixel", "pixels", "px"), "pixel"),
}
_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false")
_SAME_UM = 0.01  # heights this close are one height, rounded as float32


def check_matrices(adata: anndata.AnnData, where: str) -> None:
    """Raises InputError where the indices of a sparse matrix do not fit; before any is sliced."""
    check_structure(adata.X, "X", where)
    for part in ("layers", "obsm"):
        for name, matrix in getattr(adata, part).items():
            check_structure(matrix, f"{part}[{name!r}]", where)


def in_tissue(adata: anndata.AnnData, where: str, fields: str = "data") -> np.ndarray | None:
    """The spots [m] that are in the tissue; None where all are."""
    if "in_tissue" not in adata.obs:
        return None
    column = adata.obs["in_tissue"]
    text = column.astype(str).str.lower()
    mask = text.isin(_YES).to_numpy()
    if not (mask | text.isin(_NO).to_numpy()).all():
        raise InputError(
            f"{where}: expected obs['in_tissue'] to be 0 or 1, found {listed(column.unique())}; "
            f"if it means something else, --config.{fields}.in_tissue=False ignores it."
        )
    if not mask.any():
        raise InputError(
            f"{where}: obs['in_tissue'] puts every spot outside the tissue; if it means nothing, "
            f"--config.{fields}.in_tissue=False ignores it."
        )
    if mask.all():
        return None
    _LOG.info("%s: %d of %d spots dropped, outside the tissue", where, (~mask).sum(), len(mask))
    return np.flatnonzero(mask)


def spatial_unit(
    argument: str | None, adata: anndata.AnnData, where: str, fields: str = "data"
) -> str:
    """Unit of `obsm['spatial']`, "um" or "pixel"; the argument goes before the file.

    `fields` is the section of the config that the argument comes from, for messages.
    """
    given = argument if argument else adata.uns.get("spatial_unit")
    if given is None and scanpy_scale.scalefactors(adata, where) is not None:
        return "pixel"
    if given is None:
        raise InputError(
            f"{where}: the unit of obsm['spatial'] is not known; set uns['spatial_unit'] to 'um' "
            f"or 'pixel' (with uns['um_per_px']), or --config.{fields}.spatial_unit."
        )
    unit = _UNITS.get(str(given).lower())
    if unit is None:
        raise InputError(f"{where}: spatial unit must be 'um' or 'pixel', found {str(given)!r}.")
    return unit


def um_per_px(
    argument: float | None, adata: anndata.AnnData, where: str, fields: str = "data"
) -> float:
    """Micrometres per pixel; see `spatial_unit`, and `scanpy_scale` where neither gives it."""
    given = argument if argument is not None else adata.uns.get("um_per_px")
    by_scanpy = scanpy_scale.scales(adata, where)
    if given is None and by_scanpy and scanpy_scale.scalefactors(adata, where) is not None:
        return pitch.um_per_px(by_scanpy, where)
    if given is None:
        raise InputError(
            f"{where}: obsm['spatial'] is in pixels, but micrometres per pixel are not known; set "
            f"uns['um_per_px'], or --config.{fields}.um_per_px."
        )
    try:
        scale = float(np.asarray(given).item())
    except (TypeError, ValueError):
        scale = np.nan
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"{where}: um_per_px must be a number above 0, found {given!r}.")
    if scale < LEAST:
        raise InputError(
            f"{where}: expected micrometres per pixel, {LEAST:g} or more, found {scale:g}; is it "
            "in millimetres? Scanners have about 0.25 (40x) or 0.5 (20x)."
        )
    return pitch.um_per_px({"um_per_px as given": scale, **by_scanpy}, where)


def place(adata: anndata.AnnData, where: str) -> tuple[np.ndarray | None, float | None]:
    """Places in the frame of the stack [n, 2] and height, both micrometres; None if not known.

    From `obsm['spatial3d']` [n, 3], and the height also from `z_um` in obs or uns.
    """
    given = _z_um(adata, where)
    if "spatial3d" not in adata.obsm:
        return None, given
    places = numbers(adata.obsm["spatial3d"], "obsm['spatial3d']", where).astype(np.float64)
    if places.shape[1] != 3 or not np.isfinite(places).all():
        raise InputError(
            f"{where}: expected finite x, y, z in micrometres in obsm['spatial3d'] [{len(places)}, "
            f"3], found shape {places.shape} with {int((~np.isfinite(places)).sum())} values not "
            "finite; mend it, or take it out."
        )
    low, high = places[:, 2].min(), places[:, 2].max()
    if high - low > _SAME_UM:
        raise InputError(
            f"{where}: expected one height for the whole section in the third column of "
            f"obsm['spatial3d'], found {low:g} to {high:g} um; name the sections in "
            "obs['section'], or give each section one height."
        )
    if given is not None and not low - _SAME_UM <= given <= high + _SAME_UM:
        raise InputError(
            f"{where}: z_um is {given:g}, but the third column of obsm['spatial3d'] is {low:g}; "
            "both must be the height of the section in micrometres: correct one of them."
        )
    return places[:, :2], float(low) if given is None else given


def _z_um(adata: anndata.AnnData, where: str) -> float | None:
    given = constant(adata, "z_um", where)
    if given is None:
        given = adata.uns.get("z_um")
    if isinstance(given, Mapping):
        given = given.get(constant(adata, "section", where))
    if given is None:
        return None
    try:
        z_um = float(np.asarray(given).item())
    except (TypeError, ValueError):
        z_um = np.nan
    if not np.isfinite(z_um):
        raise InputError(
            f"{where}: z_um must be a number of micrometres, found {given!r}; in a file of several "
            "sections give obs['z_um'], the same for all spots of a section."
        )
    return z_um


def embedding(adata: anndata.AnnData, key: str, where: str) -> np.ndarray | None:
    """Features [n, f] float32; None where the default key is absent."""
    if key in adata.obsm:
        return numbers(adata.obsm[key], f"obsm[{key!r}]", where).astype(np.float32)
    if key != "features":
        raise InputError(
            f"{where}: expected the embedding in obsm[{key!r}], found obsm keys "
            f"{listed(adata.obsm)}; name the right one."
        )
    return None


def embeddings_by_encoder(adata: anndata.AnnData, key: str, where: str) -> dict[str, np.ndarray]:
    """Features [n, f] by encoder, of `obsm['features_<name>']`, where there are no others.

    `uns['encoders']` has the encoders' whole names by those.
    """
    if key != feature_blocks.KEY or key in adata.obsm:
        return {}
    start, said = f"{key}_", adata.uns.get("encoders", {})
    found = {}
    for each in sorted(k for k in adata.obsm if str(k).startswith(start)):
        name, values = each.removeprefix(start), adata.obsm[each]
        features = numbers(values, f"obsm[{each!r}]", where).astype(np.float32)
        found[str(said.get(name, name)) if isinstance(said, Mapping) else name] = features
    return found


def encoder(adata: anndata.AnnData) -> str | None:
    """Name of the encoder that made the features."""
    name = adata.uns.get("encoder")
    return None if name is None else str(name)


def raw_counts(adata: anndata.AnnData, layer: str, where: str) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts [n, G], which must be there, and gene names [G], each once."""
    matrix = _counts_matrix(adata, layer, where)
    if matrix is None:
        raise InputError(
            f"{where}: raw counts are needed, but there are none; put them into layers['counts'] "
            "or X."
        )
    counts, genes = _summed(matrix, adata, where)
    wrong = counts.data[~is_count(counts.data)]
    if len(wrong):
        others = [name for name in layer_names(adata) if name != layer]
        there = f" (its layers: {listed(others)})" if others else ""
        raise InputError(
            f"{where}: counts must be non-negative integers (raw UMI counts), found "
            f"{wrong[0]:.9g}; if X is normalised, put the raw counts into layers['counts']{there}."
        )
    return counts, genes


def counts_if_measured(
    adata: anndata.AnnData, layer: str, where: str
) -> tuple[sp.csr_matrix, np.ndarray] | tuple[None, None]:
    """Counts and genes as `raw_counts`; both None where a section's expression was not measured.

    `obs['measured']` says so; where that is absent, there are no counts, or all are zero.
    """
    said = _measured(adata, where)
    nothing = said is False or (adata.X is None and not adata.layers)
    matrix = None if nothing else _counts_matrix(adata, layer, where)
    counts, genes = (None, None) if matrix is None else _summed(matrix, adata, where)
    if counts is None or not counts.data.any():
        if said:
            raise InputError(
                f"{where}: obs['measured'] says that its expression was measured, but it has no "
                "counts above 0; put them into layers['counts'] or X, or set obs['measured'] to "
                "False."
            )
        return None, None
    wrong = counts.data[~is_count(counts.data)]
    if len(wrong):
        raise InputError(
            f"{where}: expected raw counts (non-negative integers), found {wrong[0]:.9g}; put them "
            "into layers['counts'], or set obs['measured'] to False for a section that is to be "
            "predicted from its image."
        )
    return counts, genes


def _measured(adata: anndata.AnnData, where: str) -> bool | None:
    """What `obs['measured']` says of a section; None where it is absent."""
    text = constant(adata, "measured", where)
    if text is not None and text.lower() not in _YES + _NO:
        raise InputError(f"{where}: expected obs['measured'] to be True or False, found {text!r}.")
    return None if text is None else text.lower() in _YES


def _counts_matrix(adata: anndata.AnnData, layer: str, where: str) -> object | None:
    """The layer, or X in place of an absent default; None where there is nothing."""
    if layer not in adata.layers and layer != "counts":
        raise InputError(
            f"{where}: expected raw counts in layers[{layer!r}], found layers "
            f"{listed(layer_names(adata))}; name the right one."
        )
    return None if adata.n_vars == 0 else adata.layers.get(layer, adata.X)


def layer_names(adata: anndata.AnnData) -> list[str]:
    """Of the layers; anndata lists `X` among them from 0.13 on, under None."""
    return [name for name in adata.layers if name is not None]


def _summed(matrix: object, adata: anndata.AnnData, where: str) -> tuple[sp.csr_matrix, np.ndarray]:
    names = gene_names(adata.var, where)
    if not sp.issparse(matrix):
        matrix = numbers(matrix, "the counts", where)
    counts = sp.csr_matrix(canonical(matrix, where), dtype=np.float32)
    return sum_duplicates(rounded(counts, where), names, where)


def section_labels(adata: anndata.AnnData) -> list[str]:
    """Sections that `obs['section']` names, in order of their names."""
    return sorted(adata.obs["section"].astype(str).unique()) if "section" in adata.obs else []


def constant(adata: anndata.AnnData, key: str, where: str) -> str | None:
    """The value of a column that must be the same for all spots of a slide."""
    if key not in adata.obs:
        return None
    values = adata.obs[key].astype(str).unique()
    if len(values) != 1:
        raise InputError(
            f"{where}: expected one {key} for the whole slide, found {listed(values)} in "
            f"obs[{key!r}]; split the file."
        )
    return str(values[0])


def label(adata: anndata.AnnData, key: str, where: str) -> str:
    """A label that is one for all spots however it is spelled; "" where it says nothing."""
    if key not in adata.obs:
        return ""
    spelled = labels.one_spelling(adata.obs[key].astype(str).unique())
    if len(set(spelled.values())) > 1:
        return constant(adata, key, where) or ""
    return next(iter(spelled.values()))


def listed(values: Iterable[object]) -> str:
    """The first few, for messages."""
    names = [str(value) for value in values]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "none"
