"""Whatever is named as a slide to predict, told by its name and what lies in it.

An AnnData file, a folder of an instrument, or embeddings of patches, which are then the spots.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stfm_jax.data import embeddings
from stfm_jax.data.expression import expression
from stfm_jax.data.image import AS_USUAL, Rules
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import folders, h5ad, h5ad_counts, spatial_data, tenx, zarr_store
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class Options:
    """How an input is read; names as in the section `predict` of a config."""

    features_key: str = "features"
    spatial_unit: str | None = None
    um_per_px: float | None = None
    in_tissue: bool = True  # whether spots outside the tissue are dropped
    bin_um: float = 8.0
    cells_um: float = 0.0
    patch_px: float | None = None  # of patches of embeddings
    rules: Rules = AS_USUAL  # how a folder's image is taken


def read_to_predict(path: str | Path, options: Options, look_for_image: bool = False) -> Slide:
    """A slide to predict; its counts are not looked at.

    Args:
      path: file or folder.
      options: how it is read.
      look_for_image: whether an image is looked for in a folder or store, to be embedded.

    Raises:
      FileNotFoundError, InputError: there is nothing, or nothing that is known; or as its reader.
    """
    if _is_embeddings(path):
        return embeddings.at_patches(open_embeddings(path, options.patch_px), options.um_per_px)
    path, platform = _platform(path)
    if platform is None:
        slide = h5ad.read_to_predict(
            path,
            features_key=options.features_key,
            spatial_unit=options.spatial_unit,
            um_per_px=options.um_per_px,
            tissue_mask=options.in_tissue,
        )
        wanted = look_for_image and slide.features is None and zarr_store.is_store(path)
        return spatial_data.with_image(slide, path, options.rules) if wanted else slide
    slide = _read(path, platform, options, counts=False)
    image = platform.image(path) if look_for_image else None
    return slide if image is None else folders.with_image(slide, image, options.rules)


def read_counted(path: str | Path, options: Options) -> Slide:
    """A slide with its counts, which are needed.

    Raises:
      FileNotFoundError, InputError: as `read_to_predict`.
    """
    path, platform = _platform(path)
    if platform is None:
        return h5ad.read(
            path,
            spatial_unit=options.spatial_unit,
            um_per_px=options.um_per_px,
            tissue_mask=options.in_tissue,
            fields="predict",
        )
    return _read(path, platform, options, counts=True)


def read_expression(
    path: str | Path,
    options: Options,
    barcodes: np.ndarray,
    genes: Sequence[str],
    normalization: str,
) -> np.ndarray | None:
    """Normalised expression [n, g] of a slide's spots, NaN of those without counts.

    None where a gene, or every spot, has none.
    """
    if _is_embeddings(path):
        return None
    if _platform(path)[1] is None and not zarr_store.is_store(path):
        return h5ad_counts.read_expression(path, barcodes, genes, normalization)
    slide = read_counted(path, options)
    rows = pd.Index(slide.barcodes).get_indexer(barcodes)
    known, lacking = rows >= 0, set(genes) - set(slide.columns)
    if lacking or not known.any():
        _LOG.info(
            "%s: the prediction is not compared with its counts, which %d of %d spots and %d of %d "
            "genes lack",
            *(slide.where, (~known).sum(), len(rows), len(lacking), len(genes)),
        )
        return None
    found = np.full((len(rows), len(genes)), np.nan, np.float32)
    found[known] = expression(slide.subset(rows[known]), genes, normalization)
    return found


def open_embeddings(files: str | Path, patch_px: float | None) -> list[embeddings.Embeddings]:
    """Embeddings of a file, or of several with commas between, which stay there.

    Args:
      patch_px: side of the patches in pixels of level 0, over what the files say.

    Raises:
      FileNotFoundError, InputError: as `embeddings.open_stored`.
    """
    paths = [path.strip() for path in str(files).split(",") if path.strip()]
    found = [
        spatial_data.open_tiles(path) if zarr_store.is_store(path) else embeddings.open_stored(path)
        for path in paths
    ]
    if patch_px is None:
        return found
    return [dataclasses.replace(each, side_px=patch_px) for each in found]


def _is_embeddings(path: str | Path) -> bool:
    """Whether an input is a file of embeddings, or several; not whether it is a good one."""
    if str(path).lower().endswith((".pt", ".pth")) or spatial_data.is_tiles(path):
        return True
    return str(path).lower().endswith((".h5", ".hdf5")) and not tenx.is_matrix(Path(path))


def _platform(path: str | Path) -> tuple[Path, folders.Platform | None]:
    """The folder to read and who wrote it; of a file and of a zarr store itself, and None.

    A matrix of 10x stands for the folder that it lies in.

    Raises:
      InputError: a folder that nobody known wrote.
    """
    path = Path(path)
    if path.suffix == ".h5" and path.is_file():
        path = path.parent
    if not path.is_dir() or zarr_store.is_store(path):
        return path, None
    platform = folders.platform_of(path)
    if platform is None:
        known = "; ".join(f"{p.looked_for} ({name})" for name, p in folders.PLATFORMS.items())
        there = ", ".join([p.name for p in visible(path)][:6]) or "nothing"
        raise InputError(
            f"{path}: expected a slide to predict, a folder with one of: {known}; found {there}. "
            "Several slides are predicted one at a time."
        )
    return path, platform


def _read(path: Path, platform: folders.Platform, options: Options, counts: bool) -> Slide:
    given = folders.Options(
        counts, options.um_per_px, options.bin_um, options.cells_um, fields="predict"
    )
    return platform.read(path, folders.name_of(path), given)
