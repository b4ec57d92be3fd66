"""HEST-1k as released, of which HEST-bench is a part: slides, images or patches, and what is told.

    <root>/st/<id>.h5ad             raw counts in X, obsm['spatial'] (x, y) in pixels
    <root>/wsis/<id>.tif            the image
    <root>/patches/<id>.h5          img [n, 224, 224, 3] at 0.5 um per pixel, barcode [n, 1]
    <root>/metadata/<id>.json       dataset_title, patient, st_technology, pixel_size_um_estimated;
    or <root>/HEST_v1*.csv          a row for each id

Micrometres per pixel follow from the distance of the spots: what the images say of themselves is
wrong for many. `in_tissue` means nothing there, and is ignored.

Reference: Jaume et al., HEST-1k, NeurIPS 2024 (mahmoodlab/HEST); data on Hugging Face, gated.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.data import labels
from stfm_jax.data.image import AS_USUAL, Rules, with_image
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import h5ad, hest, pitch, plain
from stfm_jax.data.readers.h5ad_slide import slide_from_anndata
from stfm_jax.data.readers.transcripts import CONTROLS
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

HOW_TO_GET = (
    "HEST-1k is the gated dataset MahmoodLab/hest on Hugging Face: accept its terms there, log in, "
    "and download st/, metadata/, and wsis/ or patches/ of the slides into the data folder."
)
# Centre to centre. Of Xenium and Visium HD the files hold squares of so much, whatever
# `inter_spot_dist` says.
PITCH_UM = {"visium": 100.0, "xenium": 100.0, "visium hd": 128.0, "spatial transcriptomics": 200.0}
_OWN_PITCH = "spatial transcriptomics"  # has arrays of several
_LOG = logging.getLogger("stfm_jax")


def slides(root: Path, task: str = "", ids: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What is told of each slide, by id, sorted.

    Args:
      root: of the data set.
      task: OncoTree code, as IDC; "": of all.
      ids: these alone, where there are any.

    Raises:
      FileNotFoundError: no slides, or not these.
      InputError: none of the task; what is told is damaged.
    """
    there = [path.stem for path in visible(root / "st", "*.h5ad")]
    absent = [name for name in ids if name not in there]
    if not there or absent:
        raise FileNotFoundError(
            f"{root}: expected st/{absent[0] if absent else '<id>'}.h5ad there, found "
            f"{len(there)} slides{f', such as {there[0]}' if there else ''}. {HOW_TO_GET}"
        )
    table = _table(root)
    about = {name: _about(root, table, name) for name in ids or there}
    if not task:
        return about
    chosen = {
        name: said for name, said in about.items()
        if str(said.get("oncotree_code", "")).casefold() == task.casefold()
    }  # fmt: skip
    if not chosen:
        codes = sorted({str(said.get("oncotree_code") or "none") for said in about.values()})
        raise InputError(
            f"config.data.task: none of the {len(about)} slides of {root} has the OncoTree code "
            f"{task!r}; they have {', '.join(codes)}."
        )
    return chosen


def patients(about: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The patient of each slide: title of the study and name, however that is spelled.

    Where a slide of a study does not tell its patient, the study stands for all of its patients;
    a slide that tells neither is of its own.
    """
    study = {name: _text(said, "dataset_title") for name, said in about.items()}
    own = {name: labels.key(said.get("patient")) for name, said in about.items()}
    silent = {study[name] for name, patient in own.items() if not patient}
    untold = sum(not patient for patient in own.values())
    if untold:
        _LOG.info("%d of %d slides do not tell their patient: studies stand for them",
                  untold, len(own))  # fmt: skip
    return {
        name: study[name] if study[name] in silent else f"{study[name]}: {own[name]}"
        for name in about
    }


def read(
    root: Path,
    name: str,
    about: Mapping[str, Any],
    *,
    patient: str = "",
    um_per_px: float | None = None,
    rules: Rules = AS_USUAL,
) -> Slide:
    """Reads a slide, with patches of its image, or those that are stored where there is none.

    Args:
      about: what is told of it.
      um_per_px: micrometres per pixel, over what its spots say.
      rules: how its image is taken.

    Raises:
      FileNotFoundError, InputError: a file is missing or damaged, or not of this slide.
    """
    path = root / "st" / f"{name}.h5ad"
    adata = h5ad.load(path, HOW_TO_GET)
    where = f"slide {name!r} ({path})"
    scales = {
        "--config.data.um_per_px": um_per_px,
        "the distance of its spots": _by_pitch(adata, about),
        "pixel_size_um_estimated": _number(about, "pixel_size_um_estimated"),
    }
    if not any(scales.values()):
        raise InputError(
            f"{where}: nothing says how many micrometres its pixels are: neither metadata of the "
            f"slide, nor --config.data.um_per_px. {HOW_TO_GET}"
        )
    adata.uns.pop("spatial", None)  # scale factors made from the pixel size that is embedded
    slide = slide_from_anndata(
        adata,
        name=name,
        source=str(path),
        spatial_unit="pixel",
        um_per_px=pitch.um_per_px(scales, where),
        tissue_mask=False,
    )
    slide = dataclasses.replace(_without_controls(slide), patient=patient)
    image, patches = root / "wsis" / f"{name}.tif", root / "patches" / f"{name}.h5"
    if image.is_file():
        return with_image(slide, image, rules)
    return hest.with_patches(slide, patches, HOW_TO_GET) if patches.is_file() else slide


def _without_controls(slide: Slide) -> Slide:
    """Without Xenium's control features, which are among the genes there."""
    genes = np.flatnonzero([CONTROLS.match(str(gene)) is None for gene in slide.genes])
    if len(genes) == len(slide.genes):
        return slide
    return dataclasses.replace(slide, counts=slide.counts[:, genes], genes=slide.genes[genes])


def _by_pitch(adata: Any, about: Mapping[str, Any]) -> float | None:
    """Micrometres per pixel by the distance of neighbouring spots, where their kind is told."""
    technology = _text(about, "st_technology").casefold()
    pitch_um = PITCH_UM.get(technology)
    if technology == _OWN_PITCH:
        pitch_um = _number(about, "inter_spot_dist") or pitch_um
    if pitch_um is None or "spatial" not in adata.obsm:
        return None
    coords = np.asarray(adata.obsm["spatial"], np.float64)
    coords = coords[np.isfinite(coords).all(axis=1)]
    if len(coords) < 2:
        return None
    between = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
    return pitch_um / between if between > 0 else None


def _table(root: Path) -> dict[str, dict[str, Any]]:
    """Rows of the newest table beside the folders, by id; nothing where there is none."""
    tables = visible(root, "HEST_v1*.csv")
    if not tables:
        return {}
    table = plain.read_table(tables[-1], ",", header=0, encoding="utf-8-sig")
    if "id" not in table:
        raise InputError(f"{tables[-1]}: expected the column id, found {', '.join(table)}.")
    return {row["id"]: row for row in table.to_dict("records")}


def _about(root: Path, table: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    path = root / "metadata" / f"{name}.json"
    return plain.read_json(path) if path.is_file() else table.get(name, {})


def _text(about: Mapping[str, Any], key: str) -> str:
    """What is told, "" where it is nothing: null of JSON, NaN, or an empty cell."""
    return labels.said(about.get(key))


def _number(about: Mapping[str, Any], key: str) -> float | None:
    try:
        value = float(_text(about, key))
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None
