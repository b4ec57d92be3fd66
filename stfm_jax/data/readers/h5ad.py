"""Slides from AnnData files or zarr stores, whoever wrote them, and slides into such files.

How an AnnData object becomes a slide is in `h5ad_slide.py`, counts read block by block are in
`h5ad_counts.py`; writing predictions lives in `stfm_jax.predict`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd

from stfm_jax.data import feature_blocks, feature_store, foreign
from stfm_jax.data.hdf5 import opened, require_file
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import h5ad_elements as elements
from stfm_jax.data.readers import h5ad_group, spatial_data, zarr_store
from stfm_jax.data.readers.h5ad_slide import slide_from_anndata
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import atomic_path

_GET = "Give the path of an AnnData .h5ad file."


def read(
    path: str | Path,
    *,
    features_key: str = "features",
    counts_layer: str = "counts",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
    tissue_mask: bool = True,
    fields: str = "data",
    labels_key: str = "",
) -> Slide:
    """Reads an AnnData file that holds one slide; for the arguments see `slide_from_anndata`.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is damaged, no AnnData file, or not a slide; `obs['section']` names several
        sections (see `read_stack`).
    """
    also = (labels_key,) if labels_key else ()
    adata = load(path, features_key=features_key, counts_layer=counts_layer, also=also)
    _require_one_section(adata, path)
    return slide_from_anndata(
        adata,
        name=zarr_store.name_of(path),
        source=str(path),
        features_key=features_key,
        counts_layer=counts_layer,
        spatial_unit=spatial_unit,
        um_per_px=um_per_px,
        tissue_mask=tissue_mask,
        fields=fields,
        labels_key=labels_key,
    )


def read_to_predict(
    path: str | Path,
    *,
    features_key: str = "features",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
    tissue_mask: bool = True,
) -> Slide:
    """Reads a slide as `read`, but counts are not looked at, and an embedding stays in the file.

    Raises:
      FileNotFoundError, InputError: as `read`.
    """
    adata, features = _without_features(path, features_key)
    _require_one_section(adata, path)
    return slide_from_anndata(
        adata,
        name=zarr_store.name_of(path),
        source=str(path),
        features_key=features_key,
        spatial_unit=spatial_unit,
        um_per_px=um_per_px,
        tissue_mask=tissue_mask,
        expression="ignored",
        features=features,
        fields="predict",
    )


def read_children(
    path: str | Path,
    *,
    features_key: str = "features",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
    tissue_mask: bool = True,
) -> Slide:
    """Reads the finer spots of another file, as `read`; they may have no counts.

    Raises:
      FileNotFoundError, InputError: as `read`.
    """
    adata = load(path, features_key=features_key)
    _require_one_section(adata, path)
    return slide_from_anndata(
        adata,
        name=zarr_store.name_of(path),
        source=str(path),
        features_key=features_key,
        spatial_unit=spatial_unit,
        um_per_px=um_per_px,
        tissue_mask=tissue_mask,
        expression="if measured",
        fields="predict",
    )


def read_stack(path: str | Path, **options) -> list[Slide]:
    """Reads an AnnData file of several sections, split by `obs['section']`, in order of height.

    Sections without `obs['z_um']` keep the order of their names.

    Args:
      options: keyword arguments of `slide_from_anndata`, names and source aside.

    Raises:
      FileNotFoundError, InputError: as `read`.
    """
    keys = {k: options[k] for k in ("features_key", "counts_layer") if k in options}
    return _sections(load(path, **keys), path, None, options)


def read_stack_to_predict(
    path: str | Path,
    *,
    features_key: str = "features",
    counts_layer: str = "counts",
    spatial_unit: str | None = None,
    um_per_px: float | None = None,
    tissue_mask: bool = True,
) -> list[Slide]:
    """Reads sections as `read_stack`, but they need no counts, and an embedding stays in the file.

    Counts are those of the measured sections: `obs['measured']` says which these are, the same for
    all spots of a section; where it is absent, those with a count above zero. The others have
    neither counts nor genes.

    Raises:
      FileNotFoundError, InputError: as `read`; a section is said to be measured but has no counts.
    """
    adata, features = _without_features(path, features_key, counts_layer)
    options = {
        "features_key": features_key,
        "counts_layer": counts_layer,
        "spatial_unit": spatial_unit,
        "um_per_px": um_per_px,
        "tissue_mask": tissue_mask,
        "expression": "if measured",
        "fields": "predict",
    }
    return _sections(adata, path, features, options)


def read_folder_to_predict(folder: str | Path, **options) -> list[Slide]:
    """Reads a folder of .h5ad files that hold one section each, as `read_stack_to_predict`.

    Args:
      options: as of `read_stack_to_predict`.

    Returns:
      The sections in order of height, those without `z_um` in order of their names.

    Raises:
      FileNotFoundError, InputError: as `read_stack_to_predict`; there is no such folder, or no
        .h5ad file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. Give a folder of .h5ad files, one for each section."
        )
    paths = slide_files(folder)
    if not paths:
        raise InputError(
            f"{folder}: expected one .h5ad or .zarr for each section of the stack, found none."
        )
    slides = []
    for path in paths:
        found = read_stack_to_predict(path, **options)
        if len(found) > 1:
            raise InputError(
                f"{path}: expected one section in each file of a folder, but obs['section'] names "
                f"{len(found)} ({elements.listed(s.section for s in found)}); split the file, or "
                "give this file alone."
            )
        slides.append(dataclasses.replace(found[0], name=zarr_store.name_of(path)))
    return _by_height(slides)


def slide_files(folder: Path) -> list[Path]:
    """AnnData files and zarr stores of a folder, sorted by name.

    Raises:
      InputError: two of one name.
    """
    ends = (".h5ad", *zarr_store.SUFFIXES)
    paths = [path for path in visible(folder) if path.name.endswith(ends)]
    names = [zarr_store.name_of(path) for path in paths]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{folder}: has two files of the slide {twice[0]!r}; leave one of them.")
    return paths


def _sections(
    adata: anndata.AnnData,
    path: str | Path,
    features: feature_store.StoredFeatures | None,
    options: dict,
) -> list[Slide]:
    """The slides of a file, one for each value of `obs['section']`, in order of height."""
    labels = adata.obs["section"].astype(str).to_numpy() if "section" in adata.obs else None
    slides = []
    for section in elements.section_labels(adata) or [""]:
        here = np.arange(adata.n_obs) if labels is None else np.flatnonzero(labels == section)
        slides.append(
            slide_from_anndata(
                adata if section == "" else adata[here].copy(),
                name=zarr_store.name_of(path) + (f"_{section}" if section else ""),
                source=str(path),
                features=None if features is None else features.take(here),
                **options,
            )
        )
    return _by_height(slides)


def _by_height(slides: list[Slide]) -> list[Slide]:
    return sorted(slides, key=lambda slide: 0.0 if slide.z_um is None else slide.z_um)


def _without_features(
    path: str | Path, features_key: str, counts_layer: str | None = None
) -> tuple[anndata.AnnData, feature_store.StoredFeatures | None]:
    """What a file holds, without its features where these can stay there."""
    if zarr_store.is_store(path):
        return spatial_data.load(path, features_key), None
    with reading(path), opened(path) as file:
        stays = isinstance(file.get(f"obsm/{features_key}"), h5py.Dataset)
        adata = h5ad_group.annotations(file, None if stays else features_key)
        if counts_layer is not None:
            adata = h5ad_group.with_counts(adata, file, counts_layer)
        if not stays:
            return adata, None
        return adata, feature_store.stored_features(file["obsm"][features_key], str(path))


def _require_one_section(adata: anndata.AnnData, path: str | Path) -> None:
    sections = elements.section_labels(adata)
    if len(sections) > 1:
        raise InputError(
            f"{path}: expected one section, but obs['section'] names {len(sections)} "
            f"({', '.join(sections[:3])}, ...); split the file, or read it as a stack."
        )


def load(
    path: str | Path,
    how_to_get: str = _GET,
    features_key: str = feature_blocks.KEY,
    counts_layer: str = "counts",
    also: Iterable[str] = (),
) -> anndata.AnnData:
    """Reads of an AnnData file what a slide needs; see `h5ad_group.whole`.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is empty, damaged, or no AnnData file.
    """
    if zarr_store.is_store(path):
        return spatial_data.load(path, features_key, counts_layer, also)
    with reading(path, how_to_get), opened(path) as file:
        return h5ad_group.whole(file, features_key, counts_layer, also)


@contextlib.contextmanager
def reading(path: str | Path, how_to_get: str = _GET) -> Iterator[None]:
    """What reading an AnnData file may raise, as errors that name the file."""
    path = require_file(path, how_to_get)
    advice = "get the file again, or write it with anndata."
    with foreign.reading(path, "an AnnData file", advice), warnings.catch_warnings():
        # Repeated gene names are summed, repeated barcodes are an error: both said by us.
        warnings.filterwarnings("ignore", message=".*names are not unique")
        yield


def _put_features(adata: anndata.AnnData, slide: Slide) -> None:
    if not slide.widths:
        adata.obsm[feature_blocks.KEY] = np.asarray(slide.features)
        adata.uns["encoder"] = slide.encoder or ""
        return
    found = feature_blocks.by_encoder(slide)
    keys = feature_blocks.keys(list(found))
    for name, features in found.items():
        adata.obsm[keys[name]] = features
    start = f"{feature_blocks.KEY}_"
    adata.uns["encoders"] = {key.removeprefix(start): name for name, key in keys.items()}


def write(slide: Slide, path: str | Path) -> None:
    """Writes a slide as `read` takes it: raw counts in `X`, coordinates as they came in.

    Raises:
      InputError: the disk is full; or the slide has a place in its stack's frame, but no height.
    """
    if slide.registered_um is not None and slide.z_um is None:
        raise InputError(f"{slide.where}: has places in the frame of its stack, but no z_um.")
    adata = anndata.AnnData(
        X=slide.counts,
        obs=pd.DataFrame(index=pd.Index(slide.barcodes.astype(str))),
        var=None if slide.genes is None else pd.DataFrame(index=pd.Index(slide.genes.astype(str))),
        obsm={"spatial": slide.coords_in},
    )
    adata.uns["spatial_unit"] = slide.spatial_unit
    if slide.spatial_unit == "pixel":
        adata.uns["um_per_px"] = slide.um_per_px
    if slide.features is not None:
        _put_features(adata, slide)
    for key in ("patient", "section", "parent"):
        if getattr(slide, key) is not None and len(getattr(slide, key)):
            adata.obs[key] = getattr(slide, key)
    if slide.z_um is not None:
        adata.uns["z_um"] = slide.z_um
    if slide.registered_um is not None:
        height = np.full(slide.num_spots, slide.z_um)
        adata.obsm["spatial3d"] = np.column_stack([slide.registered_um, height])
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary)
