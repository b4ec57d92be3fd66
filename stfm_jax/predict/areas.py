"""Regions of a slide that were drawn: prediction is restricted to them, and told by region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stfm_jax.data.geojson import labels, read_regions, write_spots
from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.ops import metrics
from stfm_jax.runtime import marks
from stfm_jax.runtime.files import write_csv


def of_spots(slide: Slide, path: str) -> np.ndarray:
    """The region that each spot lies in, "" of none; [n] str.

    Raises:
      InputError: no regions, or spots that are not in pixels of the image they were drawn on.
    """
    _require_pixels(slide, "--config.predict.regions")
    return labels(read_regions(path), slide.coords_in)


def restricted(slide: Slide, path: str) -> Slide:
    """The spots of a slide that lie in the regions of a file; all, where none is named.

    Raises:
      InputError: as `of_spots`; or none does.
    """
    if not path:
        return slide
    inside = of_spots(slide, path) != ""
    if not inside.any():
        low, high = slide.coords_in.min(axis=0), slide.coords_in.max(axis=0)
        raise InputError(
            f"{path}: none of the {slide.num_spots} spots of {slide.where} lies in its regions; "
            f"the spots reach from ({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f}) "
            "in pixels of level 0, and regions must be drawn on this very image."
        )
    return slide.subset(inside)


def write_table(
    path: Path,
    regions: np.ndarray,
    mean: np.ndarray,
    measured: np.ndarray | None,
    genes: Sequence[str],
) -> None:
    """Writes a line for each region: spots, Pearson where counts are there, mean of each gene."""
    rows = []
    for name in dict.fromkeys(regions):
        here = regions == name
        row: dict[str, Any] = {"region": name, "spots": int(here.sum())}
        known = here if measured is None else here & np.isfinite(measured).all(axis=1)
        if measured is not None and known.sum() > 2:
            scores = metrics.pearson(mean[known], measured[known])
            row["pearson"] = metrics.mean_over_genes(scores)[0]
        rows.append(row | dict(zip(genes, mean[here].mean(axis=0), strict=True)))
    write_csv(path, marks.marked(rows))


def write_geojson(path: Path, output: Path, slide: Slide, genes: Sequence[str]) -> None:
    """Writes the prediction in an output file as squares."""
    um_per_px = _require_pixels(slide, "--config.predict.geojson")
    side = spot_spacing_um(slide.coords_um) / um_per_px
    with h5py.File(output) as file:
        write_spots(path, slide.coords_in, side, slide.barcodes, file["X"], genes)


def check_geojson(slide: Slide) -> None:
    """Raises InputError where spots cannot be written as GeoJSON."""
    _require_pixels(slide, "--config.predict.geojson")


def _require_pixels(slide: Slide, option: str) -> float:
    """Micrometres per pixel of spots in pixels."""
    if slide.spatial_unit != "pixel":
        raise InputError(
            f"{option}: {slide.where} has coordinates in micrometres, expected pixels of the "
            "image; store pixels in obsm['spatial'], 'pixel' in uns['spatial_unit'] and "
            "uns['um_per_px']."
        )
    return slide.um_per_px
