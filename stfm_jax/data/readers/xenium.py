"""Xenium bundles of analysis 1 to 4: cells, or squares that cells are added up in.

    [outs/]cells.parquet               cell_id, x_centroid, y_centroid (um)
    [outs/]cell_feature_matrix.h5      counts; or the folder cell_feature_matrix/
    [outs/]experiment.xenium           pixel_size
    *_he_imagealignment.csv            3 x 3, no header: H&E pixels to those of the DAPI image;
    or *_matrix.csv, *_keypoints.csv   as Xenium Explorer exports it
    *_he_image.ome.tif                 the H&E

With an alignment places are pixels of the H&E, without one the bundle's micrometres. Genes are
those of the panel; controls are left out. Molecules are the matter of `transcripts.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stfm_jax.data.listing import visible
from stfm_jax.data.readers import pitch, plain, tenx
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

LOOKED_FOR = "experiment.xenium, or cells.parquet beside cell_feature_matrix.h5"
PIXEL_UM = 0.2125  # of the DAPI image, where experiment.xenium does not say
_CELLS, _MATRIX = "cells.parquet", "cell_feature_matrix"
_COLUMNS = ("cell_id", "x_centroid", "y_centroid")
_ALIGNMENTS = ("*he_imagealignment.csv", "*_matrix.csv", "matrix.csv", "*keypoints*.csv")
_IMAGES = ("*he_image*.tif", "*he_image*.tiff", "*he_image*.btf", "*_he.tif", "*_he.ome.tif")
_POINTS = ("fixedX", "fixedY", "alignmentX", "alignmentY")  # of the DAPI image, of the H&E
_STRETCHED = 1.05  # ratio of the sides of a pixel from which on it is said [ours]
_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class _Cells:
    ids: np.ndarray  # [n] str
    centroids: np.ndarray  # [n, 2] um
    counts: sp.csr_matrix | None  # [n, G]
    genes: np.ndarray | None


def is_one(folder: Path) -> bool:
    """Whether a folder holds a bundle."""
    return _root(folder) is not None


def _root(folder: Path) -> Path | None:
    for root in (folder, folder / "outs"):
        if (root / "experiment.xenium").is_file():
            return root
        if (root / _CELLS).is_file() and visible(root, f"{_MATRIX}*"):
            return root
    return None


def read(
    folder: str | Path,
    name: str,
    cells_um: float = 0.0,
    *,
    counts: bool = True,
    um_per_px: float | None = None,
    alignment: Path | None = None,
    fields: str = "data",
) -> Slide:
    """Reads a bundle.

    Args:
      folder: of the bundle, or around its `outs`.
      name: of the slide.
      cells_um: side of the squares that cells are added up in by their centroids, micrometres of
        the bundle; 0: every cell is a spot. Squares without a cell are none.
      counts: whether they are needed.
      um_per_px: micrometres per pixel of the H&E, over what the alignment gives.
      alignment: its file; None: looked for in the folder, and beside it by its name.
      fields: section of the config that these come from, for messages.

    Raises:
      InputError, FileNotFoundError: no bundle; a file is damaged or missing, or two do not belong
        together.
    """
    folder = Path(folder)
    root = _root(folder)
    if root is None:
        raise InputError(f"{folder}: expected {LOOKED_FOR} there or in outs/, found none.")
    if not cells_um >= 0:
        raise InputError(f"config.{fields}.cells_um must be 0 or above, found {cells_um:g}.")
    cells = _cells(root, counts)
    if cells_um:
        if not np.isfinite(cells.centroids).all():
            raise InputError(f"{root / _CELLS}: has centroids that are not finite numbers.")
        cells = _squares(cells, cells_um)
    alignment = alignment or _one(folder, root, _ALIGNMENTS, "alignment of the H&E")
    slide = Slide(
        name=name,
        barcodes=cells.ids,
        coords_um=cells.centroids,
        counts=cells.counts,
        genes=cells.genes,
        source=str(folder),
    )
    if alignment is None:
        return slide
    return _on_image(slide, alignment, _pixel_um(root), um_per_px, fields)


def find_image(folder: Path) -> Path | None:
    """The H&E of a bundle, in the folder or beside it by its name; None where there is none."""
    root = _root(folder)
    return None if root is None else _one(folder, root, _IMAGES, "H&E image")


def _one(folder: Path, root: Path, patterns: tuple[str, ...], what: str) -> Path | None:
    """The file of one of the patterns: in the folders, else beside them by the bundle's name."""
    own = folder.parent if folder.name == "outs" else folder
    stem = own.name.removesuffix("_outs")
    for where, start in ((root, ""), (own, ""), (own.parent, stem)):
        found = {
            path
            for pattern in patterns
            for path in visible(where, pattern)
            if path.is_file() and path.name.startswith(start)
        }
        if len(found) > 1:
            raise InputError(
                f"{where}: expected one {what}, found {', '.join(sorted(p.name for p in found))}; "
                "leave one, or name it in slides.csv (columns image and alignment)."
            )
        if found:
            return found.pop()
    return None


def _cells(root: Path, counts: bool) -> _Cells:
    table = _table(root / _CELLS)
    ids = table["cell_id"].to_numpy(dtype=str)
    centroids = table[list(_COLUMNS[1:])].to_numpy()
    if not counts:
        return _Cells(ids, centroids, None, None)
    path = next(
        (p for p in (root / f"{_MATRIX}.h5", root / _MATRIX / "matrix.mtx.gz",
                     root / _MATRIX / "matrix.mtx") if p.is_file()), None,
    )  # fmt: skip
    if path is None:
        raise FileNotFoundError(
            f"{root}: expected {_MATRIX}.h5 there, or the folder {_MATRIX}/, found neither; get it "
            "from the bundle."
        )
    matrix = tenx.open_matrix(path)
    row = pd.Index(ids).get_indexer(matrix.barcodes)
    if not len(row) or (row < 0).any():
        unknown = matrix.barcodes[row < 0]
        raise InputError(
            f"{path}: names {len(unknown)} of {len(row)} cells that {_CELLS} has not"
            + (f", such as {str(unknown[0])!r} (there {ids[0]!r})" if len(unknown) else "")
            + "; both must be of one segmentation."
        )
    return _Cells(ids[row], centroids[row], matrix.counts(), matrix.genes)


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Get it from the bundle.")
    with plain.opened_parquet(path, "a parquet table of cells") as file:
        there = file.schema_arrow.names
        absent = [name for name in _COLUMNS if name not in there]
        if absent or not file.metadata.num_rows:
            raise InputError(
                f"{path}: expected cells with the columns {', '.join(_COLUMNS)}, found "
                f"{file.metadata.num_rows} with {', '.join(there)}."
            )
        table = file.read(columns=list(_COLUMNS)).to_pandas()
        table["cell_id"] = [_text(each) for each in table["cell_id"]]
        table = table.astype(dict.fromkeys(_COLUMNS[1:], np.float64))
    if table["cell_id"].duplicated().any():
        raise InputError(f"{path}: names a cell twice; get the file again.")
    return table


def _text(cell: object) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)


def _squares(cells: _Cells, side_um: float) -> _Cells:
    """Cells added up in squares, which are named by their column and row."""
    at = np.floor(cells.centroids / side_um).astype(np.int64)
    squares, which = np.unique(at, axis=0, return_inverse=True)
    which = which.reshape(-1)
    counts = None
    if cells.counts is not None:
        ones = np.ones(len(which), np.float32)
        shape = (len(squares), len(which))
        counts = sp.csr_matrix((ones, (which, np.arange(len(which)))), shape=shape) @ cells.counts
    names = squares.astype(str)
    ids = np.char.add(np.char.add(names[:, 0], "x"), names[:, 1])
    return _Cells(ids, (squares + 0.5) * side_um, counts, cells.genes)


def _pixel_um(root: Path) -> float:
    path = root / "experiment.xenium"
    said = plain.read_json(path).get("pixel_size") if path.is_file() else None
    if said is None:
        return PIXEL_UM
    if not isinstance(said, int | float) or not 0.01 < said < 10:
        raise InputError(f"{path}: expected pixel_size in micrometres, found {said!r}.")
    return float(said)


def _on_image(
    slide: Slide, path: Path, pixel_um: float, um_per_px: float | None, fields: str
) -> Slide:
    """The slide with places in pixels of the H&E."""
    matrix = _matrix(path)
    sides = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if sides[0] > _STRETCHED * sides[1]:
        _LOG.warning(
            "%s: stretches the H&E by %.3g and %.3g; one scale is taken for both", path, *sides
        )
    scale = pitch.um_per_px(
        {
            f"--config.{fields}.um_per_px": um_per_px,
            f"the alignment {path.name}": pixel_um * float(np.sqrt(sides.prod())),
        },
        slide.where,
    )
    dapi = np.column_stack([slide.coords_um / pixel_um, np.ones(slide.num_spots)])
    pixels = (dapi @ np.linalg.inv(matrix).T)[:, :2]
    return dataclasses.replace(
        slide, coords_um=pixels * scale, coords_in=pixels, spatial_unit="pixel"
    )


def _matrix(path: Path) -> np.ndarray:
    """Pixels of the H&E to pixels of the DAPI image, [3, 3]; fitted where key points are given."""
    table = plain.read_table(path, ",", comment="#")
    if set(_POINTS) <= {str(cell).strip() for cell in table.iloc[0]}:
        table.columns = [str(cell).strip() for cell in table.iloc[0]]
        return _fitted(table.iloc[1:], path)
    values = table.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    good = values.shape == (3, 3) and np.isfinite(values).all()
    if not good or not np.allclose(values[2], (0, 0, 1), atol=1e-6) or not np.linalg.det(values):
        raise InputError(
            f"{path}: expected the matrix that aligns the H&E, 3 x 3 numbers whose last row is "
            f"0, 0, 1, or key points with {', '.join(_POINTS)}, found {table.shape[0]} x "
            f"{table.shape[1]}; export it from Xenium Explorer."
        )
    return values


def _fitted(points: pd.DataFrame, path: Path) -> np.ndarray:
    values = points[list(_POINTS)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    design = np.column_stack([values[:, 2:], np.ones(len(values))])
    if not np.isfinite(values).all() or np.linalg.matrix_rank(design) < 3:
        raise InputError(
            f"{path}: expected three key points or more that lie on no line, found {len(values)}."
        )
    fit = np.linalg.lstsq(design, values[:, :2], rcond=None)[0]
    return np.vstack([fit.T, [0, 0, 1]])
