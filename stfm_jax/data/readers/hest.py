"""HEST-bench folders as released: splits, gene panel, expression, patches and embeddings.

    <root>/<TASK>/splits/{train,test}_<i>.csv     sample_id, patches_path, expr_path
    <root>/<TASK>/var_50genes.json                {"genes": [...]}
    <root>/<TASK>/adata/<id>.h5ad                 raw counts in X, obsm['spatial'] in pixels (x, y)
    <root>/<TASK>/patches/<id>.h5                 img [n, 224, 224, 3] at 0.5 um per pixel, barcode
    <embed>/<TASK>/<encoder>/[fp32/]<id>.h5       see `stfm_jax.data.embeddings`

Spots with a patch are the benchmark's spots (those under tissue), fewer than `adata` holds. The
`coords` of patch files are not used: in the benchmark they are centres in the order (y, x), in
HEST-1k corners in the order (x, y).

Reference: Jaume et al., HEST-1k, NeurIPS 2024 (mahmoodlab/HEST); data on Hugging Face, gated.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from stfm_jax.data import embeddings as embedding_files
from stfm_jax.data import labels
from stfm_jax.data.hdf5 import decode_strings, open_hdf5, require_file
from stfm_jax.data.image import H5Patches
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import h5ad, plain
from stfm_jax.data.readers.h5ad_slide import slide_from_anndata
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import require_inside

TASKS = (
    "IDC",
    "PRAD",
    "PAAD",
    "SKCM",
    "COAD",
    "READ",
    "CCRCC",
    "HCC",
    "LUNG",
    "LYMPH_IDC",
)
PATCH_UM_PER_PX = 0.5  # of the stored patches
PITCH_UM = 100.0  # centre to centre of Visium's spots, and of HEST's squares of Xenium transcripts
_LOG = logging.getLogger("stfm_jax")
_PRECISIONS = ("fp32", ".", "fp16", "bf16")


def how_to_get(task: str) -> str:
    """How to get a task's data; ends messages about what is missing or damaged."""
    return (
        "HEST-bench is the gated dataset MahmoodLab/hest-bench on Hugging Face: accept its terms "
        f"there, log in, and download the folder {task}/ into the data folder."
    )


def published_folds(root: str | Path, task: str) -> list[tuple[list[str], list[str]]]:
    """The task's folds, each as (training sample ids, test sample ids), in order of their numbers.

    Raises:
      FileNotFoundError: no folder, no splits, or a fold lacks one of its two files.
      InputError: a file is damaged or empty, or a sample is in both parts of a fold.
    """
    folder = _task_folder(root, task) / "splits"
    numbers = _fold_numbers(folder)
    if not numbers:
        raise FileNotFoundError(
            f"{folder}: expected train_0.csv, test_0.csv, ... there. {how_to_get(task)}"
        )
    folds = []
    for number in numbers:
        train, test = (
            list(_split_table(folder / f"{part}_{number}.csv", task)["sample_id"])
            for part in ("train", "test")
        )
        both = sorted(set(train) & set(test))
        if both:
            raise InputError(
                f"{folder}: fold {number} has {', '.join(both)} in both train_{number}.csv and "
                f"test_{number}.csv; a test sample must not be trained on."
            )
        folds.append((train, test))
    return folds


def genes(root: str | Path, task: str, file_name: str = "var_50genes.json") -> list[str]:
    """The task's gene panel.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is no JSON object with a list of names under `genes`.
    """
    path = require_file(_task_folder(root, task) / file_name, how_to_get(task))
    try:
        panel = json.loads(path.read_text())["genes"]
    except (ValueError, KeyError, TypeError) as error:
        panel = None
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = f"{len(panel) if isinstance(panel, list) else type(panel).__name__}"
    if not isinstance(panel, list) or not panel or not all(isinstance(g, str) for g in panel):
        raise InputError(
            f'{path}: expected {{"genes": [names]}}, found something else ({reason}). '
            f"{how_to_get(task)}"
        )
    return panel


def read(
    root: str | Path,
    task: str,
    sample_id: str,
    *,
    um_per_px: float | None = None,
    embed_root: str | Path | None = None,
    encoder: str | None = None,
) -> Slide:
    """Reads one sample: counts, coordinates, patches where there are, embeddings where asked for.

    Micrometres per pixel come from, in this order: the argument; the patch file, which records how
    many pixels of the slide a stored pixel stands for; `uns['um_per_px']`; the distance between
    neighbouring spots, taken to be 100 um (a warning is logged). [ours] The benchmark's own files
    hold no pixel size elsewhere.

    Args:
      um_per_px: micrometres per pixel of the slide image, over what the files say.
      embed_root, encoder: with both, features are read from `<embed_root>/<task>/<encoder>/`.

    Raises:
      FileNotFoundError: the sample's expression, or its embeddings, are not there.
      InputError: a file is damaged, or barcodes do not match.
    """
    folder = _task_folder(root, task)
    expression_path, patches_path = _paths(folder, task, sample_id)
    adata = h5ad.load(expression_path, how_to_get(task))
    has_patches = patches_path.is_file()
    if um_per_px is None and has_patches:
        um_per_px = _patch_file_scale(patches_path, how_to_get(task))
    if um_per_px is None and "um_per_px" not in adata.uns:
        um_per_px = _scale_from_pitch(adata, f"sample {sample_id} ({expression_path})")
    # HEST's in_tissue is a left-over of Space Ranger; the patches say what is under tissue.
    slide = slide_from_anndata(
        adata,
        name=sample_id,
        source=str(expression_path),
        spatial_unit="pixel",
        um_per_px=um_per_px,
        tissue_mask=False,
    )
    if has_patches:
        slide = with_patches(slide, patches_path, how_to_get(task))
    if embed_root is not None and encoder is not None:
        path = embedding_path(embed_root, task, encoder, sample_id)
        stored = embedding_files.read(path)
        stored = dataclasses.replace(stored, encoder=stored.encoder or encoder)
        slide = embedding_files.align(slide, stored)
    return slide


def embedding_path(embed_root: str | Path, task: str, encoder: str, sample_id: str) -> Path:
    """Path of a sample's embeddings, `fp32/` first, then the encoder's folder itself.

    Raises:
      FileNotFoundError: in none of the places.
    """
    folder = Path(embed_root) / task / encoder
    for precision in _PRECISIONS:
        path = folder / precision / f"{sample_id}.h5"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder}: expected [fp32/]{sample_id}.h5 there; embed the task with "
        f"`python run.py --mode=embed`, or check the embeddings folder and the encoder's name."
    )


def _task_folder(root: str | Path, task: str) -> Path:
    folder = Path(root) / task
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. {how_to_get(task)}")
    return folder


def _fold_numbers(folder: Path) -> list[int]:
    matches = (
        re.fullmatch(r"(train|test)_(\d+)\.csv", path.name) for path in visible(folder, "*.csv")
    )
    return sorted({int(match.group(2)) for match in matches if match})


def _split_table(path: Path, task: str) -> pd.DataFrame:
    require_file(path, how_to_get(task))
    expected = "a table with the column sample_id"
    table = plain.read_table(path, ",", header=0, expected=expected, advice=how_to_get(task))
    if "sample_id" not in table or table.empty or (table["sample_id"] == "").any():
        raise InputError(
            f"{path}: expected a sample_id in each of one or more rows, found {len(table)} rows "
            f"with the columns {', '.join(table.columns)}. {how_to_get(task)}"
        )
    for name in {"sample_id", "expr_path", "patches_path"} & set(table.columns):
        for each in table[name].dropna():
            require_inside(each, path)
    return table


def _paths(folder: Path, task: str, sample_id: str) -> tuple[Path, Path]:
    """A sample's expression and patch files: as a split file names them, else the usual names."""
    for number in _fold_numbers(folder / "splits"):
        for part in ("train", "test"):
            path = folder / "splits" / f"{part}_{number}.csv"
            if not path.is_file():
                continue
            table = _split_table(path, task)
            rows = table[table["sample_id"] == sample_id]
            if len(rows) and {"expr_path", "patches_path"} <= set(table.columns):
                row = rows.iloc[0]
                return folder / str(row["expr_path"]), folder / str(row["patches_path"])
    return folder / "adata" / f"{sample_id}.h5ad", folder / "patches" / f"{sample_id}.h5"


def _patch_file_scale(path: Path, advice: str) -> float | None:
    """Micrometres per pixel of the slide image, from the attributes of the stored patches."""
    with open_hdf5(path, ("img",), advice, advice) as file:
        attributes = dict(file["img"].attrs)
    if "pixel_size" in attributes:  # HEST-1k's files
        scale = float(attributes["pixel_size"])
    elif "factor" in attributes:  # the benchmark's: slide pixels per stored pixel
        scale = PATCH_UM_PER_PX / max(float(attributes["factor"]), 1e-12)
    else:
        return None
    if not (np.isfinite(scale) and 0 < scale < 100):
        raise InputError(
            f"{path}: its attributes give {scale:g} um per pixel, which cannot be; pass um_per_px."
        )
    return scale


def _scale_from_pitch(adata, where: str) -> float | None:
    """Micrometres per pixel if neighbouring spots are PITCH_UM apart; None without coordinates."""
    coords = np.asarray(adata.obsm["spatial"]) if "spatial" in adata.obsm else np.zeros((0, 2))
    coords = coords[np.isfinite(coords).all(axis=1)]
    if len(coords) < 2:
        return None
    pitch = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
    if pitch <= 0:
        return None
    scale = PITCH_UM / pitch
    _LOG.warning(
        "%s: no pixel size recorded; %.4g um per pixel taken from a spot distance of %g um",
        where,
        scale,
        PITCH_UM,
    )
    return scale


def with_patches(slide: Slide, path: Path, advice: str) -> Slide:
    """The slide with its patches; spots without a patch are dropped, as the benchmark does.

    Args:
      path: `img` [n, 224, 224, 3], and a barcode of its own for each.
      advice: how to get the file; ends messages about what is missing or damaged.

    Raises:
      InputError, FileNotFoundError: the file is missing or damaged, or of another slide.
    """
    with open_hdf5(path, ("img",), advice, advice) as file:
        key = "barcode" if "barcode" in file else "barcodes"
        if key not in file:
            raise InputError(f"{path}: expected the dataset barcode. {advice}")
        barcodes = decode_strings(file[key][()])
        number = len(file["img"])
    if len(set(barcodes)) < number or len(barcodes) != number:
        raise InputError(
            f"{path}: expected one barcode of its own for each of {number} patches, found "
            f"{len(barcodes)}, {len(set(barcodes))} of them different. {advice}"
        )
    rows = labels.places(slide.barcodes, barcodes, slide.where)
    found = rows >= 0
    if not found.any():
        raise InputError(
            f"{slide.where}: none of its barcodes (such as '{slide.barcodes[0]}') is among "
            f"those of {path} (such as '{barcodes[0]}'); the two belong to different samples."
        )
    if not found.all():
        _LOG.info(
            "%s: %d of %d spots kept, which have a patch", slide.where, found.sum(), len(found)
        )
        slide = slide.subset(found)
    return dataclasses.replace(slide, patches=H5Patches(path, rows[found], PATCH_UM_PER_PX))
