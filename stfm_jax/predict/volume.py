"""A predicted stack as one AnnData: every section, measured or generated, in the common frame.

Single slides are written by `predict.py`; nothing here predicts, and no model is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd

from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import atomic_path

_LAYERS = ("std", "q10", "q90")


@dataclasses.dataclass(frozen=True)
class SectionResult:
    """One section of a stack, and its expression in the training normalisation.

    For a measured section the caller says what is written: as a rule `mean` is what was measured,
    `std` is 0 and the quantiles equal the mean. `X` of a measured section is then no prediction.
    """

    slide: Slide
    registered_um: np.ndarray  # [n, 2] common frame of the stack, micrometres
    measured: bool  # whether its expression was given
    mean: np.ndarray  # [n, g]
    std: np.ndarray | None = None  # [n, g]; None, like the quantiles, without draws
    q10: np.ndarray | None = None  # [n, g]
    q90: np.ndarray | None = None  # [n, g]


def volume(
    sections: Sequence[SectionResult],
    genes: Sequence[str],
    normalization: str,
    uns: Mapping[str, Any],
) -> anndata.AnnData:
    """One AnnData of n spots for the stack, its sections in ascending z.

    `X` is the mean, `layers` hold std, q10 and q90 where all sections have them (all float32).
    `obs` holds `section` (categories in the order of z), `slide`, `barcode`, `z_um` and `measured`;
    `obsm` holds `spatial` as it came in, `spatial_um` in the section's own frame, and `spatial3d`
    [n, 3], micrometres in the common frame. Names of spots are the barcodes as they came in; where
    sections share some, all are `<barcode>-<section>`, as `anndata.concat(..., index_unique='-')`
    makes them.

    Args:
      sections: in any order.
      genes: [g] names.
      normalization: of the expression, one of `data.expression.NORMALIZATIONS`.
      uns: what else to say, for example provenance.

    Raises:
      InputError: as `z_order`; shapes do not fit the slide and the genes; a gene occurs twice.
    """
    genes = [str(gene) for gene in genes]
    if len(set(genes)) != len(genes):
        twice = next(gene for gene in genes if genes.count(gene) > 1)
        raise InputError(f"the stack's genes must be unique, but {twice!r} occurs more than once.")
    sections = [sections[i] for i in z_order([section.slide for section in sections])]
    drawn = all(section.std is not None for section in sections)
    for section in sections:
        _check_shapes(section, len(genes), ("mean", *(_LAYERS if drawn else ())))
    slides = [section.slide for section in sections]
    adata = anndata.AnnData(
        X=_stacked(sections, "mean"),
        obs=_obs(sections),
        var=pd.DataFrame(index=pd.Index(genes)),
        layers={name: _stacked(sections, name) for name in (_LAYERS if drawn else ())},
    )
    adata.obsm["spatial"] = np.concatenate([slide.coords_in for slide in slides])
    adata.obsm["spatial_um"] = np.concatenate([slide.coords_um for slide in slides])
    plane = np.concatenate([section.registered_um for section in sections])
    adata.obsm["spatial3d"] = np.column_stack([plane, adata.obs["z_um"]]).astype(np.float64)
    units = {slide.spatial_unit for slide in slides}
    adata.uns = {
        "spatial_unit": units.pop() if len(units) == 1 else "mixed",
        **uns,
        "normalization": normalization,
    }
    return adata


def z_order(slides: Sequence[Slide]) -> list[int]:
    """Indices of the slides of a stack in ascending z.

    Raises:
      InputError: there is none; a slide has no z; two share one z or one name.
    """
    if not slides:
        raise InputError("a stack needs at least one section, found none.")
    for slide in slides:
        if slide.z_um is None:
            raise InputError(
                f"{slide.where}: its position in the stack is not known; set obs['z_um'] or "
                "uns['z_um'], micrometres."
            )
    order = sorted(range(len(slides)), key=lambda i: slides[i].z_um)
    for i, j in itertools.pairwise(order):
        if slides[i].z_um == slides[j].z_um:
            raise InputError(
                f"{slides[j].where}: lies at z = {slides[j].z_um:g} um as slide "
                f"{slides[i].name!r} does; every section needs a z of its own."
            )
    names = [slide.name for slide in slides]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two sections of the stack are named {twice!r}; rename one.")
    return order


def write_volume(path: str | os.PathLike, adata: anndata.AnnData) -> None:
    """Writes the stack as .h5ad, whole or not at all.

    Raises:
      InputError: the disk is full.
    """
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary, convert_strings_to_categoricals=False)


def _check_shapes(section: SectionResult, num_genes: int, names: Sequence[str]) -> None:
    n, where = section.slide.num_spots, section.slide.where
    expected = {name: (n, num_genes) for name in names} | {"registered_um": (n, 2)}
    for name, shape in expected.items():
        found = np.shape(getattr(section, name))
        if found != shape:
            raise InputError(f"{where}: expected {name} of shape {shape}, found {found}.")
    if not np.isfinite(section.registered_um).all():
        raise InputError(f"{where}: NaN or infinite registered coordinates; register it again.")


def _stacked(sections: Sequence[SectionResult], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(section, name), np.float32) for section in sections])


def _obs(sections: Sequence[SectionResult]) -> pd.DataFrame:
    slides = [section.slide for section in sections]
    sizes = [slide.num_spots for slide in slides]
    labels = section_labels(slides)
    barcodes = np.concatenate([slide.barcodes.astype(str) for slide in slides])
    index = pd.Index(barcodes)
    if not index.is_unique:
        labelled = zip(barcodes, np.repeat(labels, sizes), strict=True)
        # Two may still agree, where a dash is part of barcodes and labels.
        index = anndata.utils.make_index_unique(pd.Index([f"{b}-{label}" for b, label in labelled]))
    place = np.repeat(np.arange(len(slides)), sizes)
    return pd.DataFrame(
        {
            "section": pd.Categorical.from_codes(place, labels, ordered=True),
            "slide": pd.Categorical.from_codes(place, [slide.name for slide in slides]),
            "barcode": barcodes,
            "z_um": np.array([slide.z_um for slide in slides], np.float64)[place],
            "measured": np.array([section.measured for section in sections], bool)[place],
        },
        index=index,
    )


def section_labels(slides: Sequence[Slide]) -> list[str]:
    """What tells the slides of a stack apart: their sections, or their names where those do not."""
    labels = [slide.section for slide in slides]
    told = "" not in labels and len(set(labels)) == len(labels)
    return labels if told else [slide.name for slide in slides]
