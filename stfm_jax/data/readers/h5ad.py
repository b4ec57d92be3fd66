"""Slides from AnnData files, whoever wrote them, and slides into such files.

`slide_from_anndata` is shared with the HEST reader. Counts read block by block are in
`h5ad_counts.py`; writing predictions lives in `stfm_jax.eval.predict`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from stfm_jax.data import rows
from stfm_jax.data.hdf5 import require_file
from stfm_jax.data.panel import gene_names, sum_duplicates
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import atomic_path

_LOG = logging.getLogger("stfm_jax")
_GET = "Give the path of an AnnData .h5ad file."
_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), "um"),
    **dict.fromkeys(("micrometre", "micrometres"), "um"),
    **dict.fromkeys(("pixel", "pixels", "px"), "pixel"),
}


def read(
    path: str | Path,
    *,
    features_key: str = "features",
    counts_layer: str = "counts",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
) -> Slide:
    """Reads an AnnData file that holds one slide; for the arguments see `slide_from_anndata`.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is damaged, no AnnData file, or not a slide; `obs['section']` names several
        sections (see `read_stack`).
    """
    adata = load(path)
    _require_one_section(adata, path)
    return slide_from_anndata(
        adata,
        name=Path(path).stem,
        source=str(path),
        features_key=features_key,
        counts_layer=counts_layer,
        spatial_unit=spatial_unit,
        um_per_px=um_per_px,
    )


def read_to_predict(
    path: str | Path,
    *,
    features_key: str = "features",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
) -> Slide:
    """As `read`, but counts are not looked at, and an embedding stays in the file.

    Raises:
      FileNotFoundError, InputError: as `read`.
    """
    with reading(path), h5py.File(path) as file:
        adata = _annotations(file, features_key)
        features = None
        if adata is not None and isinstance(file["obsm"].get(features_key), h5py.Dataset):
            features = rows.stored_rows(file["obsm"][features_key], str(path))
    adata = load(path) if adata is None else adata
    _require_one_section(adata, path)
    return slide_from_anndata(
        adata,
        name=Path(path).stem,
        source=str(path),
        features_key=features_key,
        spatial_unit=spatial_unit,
        um_per_px=um_per_px,
        require_counts=False,
        features=features,
    )


def _annotations(file: h5py.File, features_key: str) -> anndata.AnnData | None:
    """obs, uns and coordinates of an open AnnData file, and its features where they are no matrix.

    Other elements of obsm are left empty, for messages that name them. None for a file of the time
    before elements said what they are (anndata 0.7), which is to be read whole.
    """
    if "encoding-type" not in file["obs"].attrs:
        return None
    obs = read_elem(file["obs"])
    obsm = {}
    for key, element in file.get("obsm", {}).items():
        needed = key == "spatial" or (key == features_key and isinstance(element, h5py.Group))
        obsm[key] = read_elem(element) if needed else np.empty((len(obs), 0))
    return anndata.AnnData(obs=obs, uns=read_elem(file["uns"]) if "uns" in file else {}, obsm=obsm)


def _require_one_section(adata: anndata.AnnData, path: str | Path) -> None:
    sections = _sections(adata)
    if len(sections) > 1:
        raise InputError(
            f"{path}: expected one section, but obs['section'] names {len(sections)} "
            f"({', '.join(sections[:3])}, ...); split the file, or read it as a stack."
        )


def read_stack(path: str | Path, **options) -> list[Slide]:
    """Reads an AnnData file of several sections, split by `obs['section']`, in order of height.

    Sections without `obs['z_um']` keep the order of their names.

    Args:
      options: keyword arguments of `slide_from_anndata`, names and source aside.

    Raises:
      FileNotFoundError, InputError: as `read`.
    """
    adata = load(path)
    sections = _sections(adata) or [""]
    slides = []
    for section in sections:
        part = adata if section == "" else adata[adata.obs["section"].astype(str) == section].copy()
        name = Path(path).stem + (f"_{section}" if section else "")
        slides.append(slide_from_anndata(part, name=name, source=str(path), **options))
    return sorted(slides, key=lambda slide: 0.0 if slide.z_um is None else slide.z_um)


def load(path: str | Path, how_to_get: str = _GET) -> anndata.AnnData:
    """Reads an AnnData file; an `X` that is stored dense is read as a sparse matrix, in blocks.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is empty, damaged, or no AnnData file.
    """
    with reading(path, how_to_get):
        with h5py.File(path, "r") as file:
            dense = isinstance(file.get("X"), h5py.Dataset)
        return anndata.read_h5ad(path, as_sparse=("X",) if dense else ())


@contextlib.contextmanager
def reading(path: str | Path, how_to_get: str = _GET) -> Iterator[None]:
    """What reading an AnnData file may raise, as errors that name the file."""
    path = require_file(path, how_to_get)
    try:
        with warnings.catch_warnings():
            # Repeated gene names are summed, repeated barcodes are an error: both said by us.
            warnings.filterwarnings("ignore", message=".*names are not unique")
            yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: expected an AnnData file, found {path.stat().st_size} bytes that cannot be "
            f"read as one ({reason}); get the file again, or write it with anndata."
        ) from error


def slide_from_anndata(
    adata: anndata.AnnData,
    *,
    name: str,
    source: str = "",
    features_key: str = "features",
    counts_layer: str = "counts",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
    require_counts: bool = True,
    tissue_mask: bool = True,
    features: rows.StoredRows | None = None,
) -> Slide:
    """The slide that an AnnData object holds.

    Read: `obsm['spatial']` [n, 2]; `obsm[features_key]` [n, f] and `uns['encoder']`; counts;
    `obs['in_tissue']`, `obs['patient']`, `obs['section']`; `z_um` in `obs` or `uns`.

    Args:
      features_key: key of the embedding in `obsm`. The default may be absent (features None).
      counts_layer: layer with raw counts; where the default is absent, `X` is taken.
      spatial_unit: `um` or `pixel`, over `uns['spatial_unit']`.
      um_per_px: micrometres per pixel where the unit is pixels, over `uns['um_per_px']`.
      require_counts: without it counts and genes are not looked at, and `X` may be anything.
      tissue_mask: drop the spots that `obs['in_tissue']` puts outside the tissue.
      features: of the spots of adata, instead of what is in its `obsm`.

    Raises:
      InputError: something needed is absent or wrong; the message says where and what to do.
    """
    where = f"slide {name!r}" + (f" ({source})" if source else "")
    if adata.n_obs == 0:
        raise InputError(f"{where}: has no spots; write the file again, or leave it out.")
    if "spatial" not in adata.obsm:
        raise InputError(
            f"{where}: expected spot coordinates in obsm['spatial'], found obsm keys "
            f"{_keys(adata.obsm)}; store [n, 2] coordinates there."
        )
    inside = _in_tissue(adata, where) if tissue_mask else None
    if inside is not None:
        adata = adata[inside].copy()
        features = None if features is None else features.take(inside)
    unit = _unit(spatial_unit, adata, where)
    coords = _numbers(adata.obsm["spatial"], "obsm['spatial']", where).astype(np.float64)
    scale = _scale(um_per_px, adata, where) if unit == "pixel" else 1.0
    features = _features(adata, features_key, where) if features is None else features
    counts, genes = _counts(adata, counts_layer, where) if require_counts else (None, None)
    return Slide(
        name=name,
        barcodes=adata.obs_names.to_numpy().astype(str),
        coords_um=coords * scale,
        coords_in=coords,
        spatial_unit=unit,
        counts=counts,
        genes=genes,
        features=features,
        encoder=_encoder(adata) if features is not None else None,
        patient=_constant(adata, "patient", where) or "",
        section=_constant(adata, "section", where) or "",
        z_um=_z_um(adata, where),
        source=source,
    )


def _in_tissue(adata: anndata.AnnData, where: str) -> np.ndarray | None:
    """The spots [m] that are in the tissue; None where all are."""
    if "in_tissue" not in adata.obs:
        return None
    column = adata.obs["in_tissue"]
    text = column.astype(str).str.lower()
    mask = text.isin(("1", "1.0", "true")).to_numpy()
    if not (mask | text.isin(("0", "0.0", "false")).to_numpy()).all():
        raise InputError(
            f"{where}: expected obs['in_tissue'] to be 0 or 1, found {_keys(column.unique())}."
        )
    if not mask.any():
        raise InputError(f"{where}: obs['in_tissue'] puts every spot outside the tissue.")
    if mask.all():
        return None
    _LOG.info("%s: %d of %d spots dropped, outside the tissue", where, (~mask).sum(), len(mask))
    return np.flatnonzero(mask)


def _unit(argument: str | None, adata: anndata.AnnData, where: str) -> str:
    given = argument if argument else adata.uns.get("spatial_unit")
    if given is None:
        raise InputError(
            f"{where}: the unit of obsm['spatial'] is not known; set uns['spatial_unit'] to 'um' "
            "or 'pixel' (with uns['um_per_px']), or --config.predict.spatial_unit."
        )
    unit = _UNITS.get(str(given).lower())
    if unit is None:
        raise InputError(f"{where}: spatial unit must be 'um' or 'pixel', found {str(given)!r}.")
    return unit


def _scale(argument: float | None, adata: anndata.AnnData, where: str) -> float:
    given = argument if argument is not None else adata.uns.get("um_per_px")
    if given is None:
        raise InputError(
            f"{where}: obsm['spatial'] is in pixels, but micrometres per pixel are not known; set "
            "uns['um_per_px'], or --config.predict.um_per_px."
        )
    try:
        scale = float(np.asarray(given).item())
    except (TypeError, ValueError):
        scale = np.nan
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"{where}: um_per_px must be a number above 0, found {given!r}.")
    return scale


def _features(adata: anndata.AnnData, key: str, where: str) -> np.ndarray | None:
    if key in adata.obsm:
        return _numbers(adata.obsm[key], f"obsm[{key!r}]", where).astype(np.float32)
    if key != "features":
        raise InputError(
            f"{where}: expected the embedding in obsm[{key!r}], found obsm keys "
            f"{_keys(adata.obsm)}; name the right one."
        )
    return None


def _counts(
    adata: anndata.AnnData, layer: str, where: str
) -> tuple[sp.csr_matrix | None, np.ndarray | None]:
    if layer in adata.layers:
        matrix = adata.layers[layer]
    elif layer != "counts":
        raise InputError(
            f"{where}: expected raw counts in layers[{layer!r}], found layers "
            f"{_keys(adata.layers)}; name the right one."
        )
    else:
        matrix = adata.X
    if matrix is None or adata.n_vars == 0:
        raise InputError(
            f"{where}: raw counts are needed, but there are none; put them into layers['counts'] "
            "or X."
        )
    names = gene_names(adata.var, where)
    if not sp.issparse(matrix):
        matrix = _numbers(matrix, "the counts", where)
    return sum_duplicates(sp.csr_matrix(matrix, dtype=np.float32), names, where)


def _numbers(values: object, what: str, where: str) -> np.ndarray:
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


def _encoder(adata: anndata.AnnData) -> str | None:
    encoder = adata.uns.get("encoder")
    return None if encoder is None else str(encoder)


def _sections(adata: anndata.AnnData) -> list[str]:
    """Sections that `obs['section']` names, in order of their names."""
    return sorted(adata.obs["section"].astype(str).unique()) if "section" in adata.obs else []


def _constant(adata: anndata.AnnData, key: str, where: str) -> str | None:
    """The value of a column that must be the same for all spots of a slide."""
    if key not in adata.obs:
        return None
    values = adata.obs[key].astype(str).unique()
    if len(values) != 1:
        raise InputError(
            f"{where}: expected one {key} for the whole slide, found {_keys(values)} in "
            f"obs[{key!r}]; split the file."
        )
    return str(values[0])


def _z_um(adata: anndata.AnnData, where: str) -> float | None:
    given = _constant(adata, "z_um", where)
    if given is None:
        given = adata.uns.get("z_um")
    if given is None:
        return None
    try:
        z_um = float(np.asarray(given).item())
    except (TypeError, ValueError):
        z_um = np.nan
    if not np.isfinite(z_um):
        raise InputError(f"{where}: z_um must be a number of micrometres, found {given!r}.")
    return z_um


def _keys(values: object) -> str:
    keys = [str(value) for value in values]
    return ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "") if keys else "none"


def write(slide: Slide, path: str | Path) -> None:
    """Writes a slide as `read` takes it: raw counts in `X`, coordinates as they came in.

    Raises:
      InputError: the disk is full.
    """
    adata = anndata.AnnData(
        X=slide.counts,
        obs=pd.DataFrame(index=pd.Index(slide.barcodes.astype(str))),
        var=None if slide.genes is None else pd.DataFrame(index=pd.Index(slide.genes.astype(str))),
        obsm={"spatial": slide.coords_in},
    )
    adata.uns["spatial_unit"] = slide.spatial_unit
    if slide.spatial_unit == "pixel":
        extent = np.linalg.norm(np.ptp(slide.coords_in, axis=0))
        adata.uns["um_per_px"] = float(np.linalg.norm(np.ptp(slide.coords_um, axis=0)) / extent)
    if slide.features is not None:
        adata.obsm["features"] = np.asarray(slide.features)
        adata.uns["encoder"] = slide.encoder or ""
    for key in ("patient", "section"):
        if getattr(slide, key):
            adata.obs[key] = getattr(slide, key)
    if slide.z_um is not None:
        adata.uns["z_um"] = slide.z_um
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary)
