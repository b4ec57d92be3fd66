"""What Space Ranger wrote, found in a folder: Visium of every version, and bins of Visium HD.

    [outs/]spatial/[PREFIX_]tissue_positions{.csv,_list.csv,.parquet}   spots, centres in pixels
    [outs/]spatial/[PREFIX_]scalefactors_json.json
    [outs/][PREFIX_]{filtered,raw}_feature_bc_matrix{.h5,/}             counts

Public downloads have a prefix, or lie flat in one folder; files may be gzipped. `visium.py` and
`visium_hd.py` make slides of it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stfm_jax.data import labels
from stfm_jax.data.images.opening import is_image
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import pitch, plain, tenx
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres",
           "pxl_col_in_fullres")  # fmt: skip
_POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_MATRICES = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "raw_feature_bc_matrix.h5",
    "raw_feature_bc_matrix",
    "matrix.mtx",
)
_LOG = logging.getLogger("stfm_jax")
_IMAGE_FOLDERS = ("microscope_image",)
# Of these Space Ranger makes pictures; none is the image that positions refer to.
_PICTURES = re.compile(r"(?i)hires|lowres|cytassist|aligned_|detected_|fiducial|_probabilit|qc_")


@dataclasses.dataclass(frozen=True)
class Outs:
    """The files of one capture area, or of one size of bins."""

    folder: Path  # as it was named
    positions: Path
    scalefactors: Path | None
    matrix: Path | None  # an .h5, or the .mtx of a folder


@dataclasses.dataclass(frozen=True)
class Spots:
    """Spots in the tissue."""

    barcodes: np.ndarray  # [n] str
    array: np.ndarray  # [n, 2] float64, column and row of the array
    pixels: np.ndarray  # [n, 2] float64, centres (x, y) in pixels of the full-resolution image

    def take(self, index: np.ndarray) -> Spots:
        """Some of them, [m] integers."""
        return Spots(self.barcodes[index], self.array[index], self.pixels[index])


def find(folder: Path) -> Outs | None:
    """The files of a folder that holds one capture area; None where it has no positions.

    Raises:
      InputError: it holds those of several, or of an aggregated run.
    """
    for root in (folder, folder / "outs"):
        found = _positions(root)
        if len(found) > 1:
            raise InputError(
                f"{folder}: expected one capture area, found the positions of {len(found)} "
                f"({', '.join(p.name for p in found[:4])}); give each a folder of its own."
            )
        if found:
            return _outs(folder, root, found[0])
    _refuse_aggregated(folder)
    return None


def _positions(root: Path) -> list[Path]:
    """Tables of positions, one for each prefix."""
    best: dict[str, tuple[int, Path]] = {}
    for path in [*_files(root), *_files(root / "spatial")]:
        for rank, name in enumerate(_POSITIONS):
            prefix = _prefix(path, name)
            if prefix is not None and prefix not in ("aggr_",):
                best[prefix] = min(best.get(prefix, (rank, path)), (rank, path))
    return [path for _, path in sorted(best.values())]


def _outs(folder: Path, root: Path, positions: Path) -> Outs:
    prefix = next(p for name in _POSITIONS if (p := _prefix(positions, name)) is not None)
    places = dict.fromkeys((positions.parent, root))
    scale = _first(places, prefix, ("scalefactors_json.json",))
    matrix = _first((root,), prefix, _MATRICES)
    if matrix is not None and matrix.is_dir():
        matrix = _first((matrix,), prefix, ("matrix.mtx",))
    return Outs(folder, positions, scale, matrix)


def _first(folders: Sequence[Path], prefix: str, names: Sequence[str]) -> Path | None:
    """The first file or folder of these names, with the prefix of the positions or without one.

    Where there is none, one with another prefix, if it is the only one.
    """
    there = [path for folder in folders for path in _files(folder, folders_too=True)]
    for name in names:
        for wanted in (prefix, ""):
            for path in there:
                if _prefix(path, name) == wanted:
                    return path
        others = [path for path in there if _prefix(path, name) is not None]
        if len(others) == 1:
            return others[0]
    return None


def _prefix(path: Path, name: str) -> str | None:
    """What stands before a name, "" or something that ends with _ or .; None of another file."""
    match = re.fullmatch(rf"(|.*[_.-]){re.escape(name)}(\.gz)?", path.name)
    return match.group(1) if match else None


def _files(folder: Path, folders_too: bool = False) -> Iterator[Path]:
    return (path for path in visible(folder) if path.is_file() or folders_too)


def _refuse_aggregated(folder: Path) -> None:
    for root in (folder, folder / "outs"):
        names = ("aggr_tissue_positions.csv", "aggregation.csv")
        found = next((root / name for name in names if (root / name).is_file()), None)
        if found is None:
            continue
        libraries = [p.name for p in visible(root, "spatial/*/") if p.is_dir()]
        raise InputError(
            f"{found}: an aggregated run of {len(libraries) or 'several'} libraries"
            f"{' (' + ', '.join(libraries[:6]) + ')' if libraries else ''}, expected one capture "
            "area; give the folder `outs` that Space Ranger wrote for each library before."
        )


def read_spots(path: Path) -> Spots:
    """Spots in the tissue, in the order of the table, read some at a time from parquet.

    Raises:
      InputError: the table is damaged, lacks a column, or has no spot in the tissue.
    """
    if path.suffix == ".parquet":
        parts = [_in_tissue(batch, path) for batch in _batches(path)]
    else:
        table = plain.read_table(path, ",")
        if str(table.iloc[0, 0]).strip().lower() == "barcode":
            table.columns = [str(name).strip() for name in table.iloc[0]]
            table = table.iloc[1:]
        elif table.shape[1] == len(COLUMNS):
            table.columns = list(COLUMNS)
        else:
            raise InputError(
                f"{path}: expected the {len(COLUMNS)} columns {', '.join(COLUMNS)}, found "
                f"{table.shape[1]}; get the file again."
            )
        parts = [_in_tissue(table, path)]
    spots = Spots(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    if not len(spots.barcodes):
        raise InputError(f"{path}: puts no spot into the tissue (in_tissue = 1).")
    names = pd.Index(spots.barcodes)
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise InputError(f"{path}: names the barcode {twice!r} twice; get the file again.")
    return spots


def _batches(path: Path) -> Iterator[pd.DataFrame]:
    with plain.opened_parquet(path, "a parquet table of spots") as file:
        there = [name for name in COLUMNS if name in file.schema_arrow.names]
        if not file.metadata.num_rows:
            raise InputError(f"{path}: has no rows; get the file again.")
        for batch in file.iter_batches(columns=there):
            yield batch.to_pandas()


def _in_tissue(table: pd.DataFrame, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Barcodes, places on the array, and pixels of the spots in the tissue."""
    absent = [name for name in COLUMNS if name not in table]
    if absent:
        raise InputError(
            f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(table.columns)}; "
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing."
        )
    if not table.columns.is_unique:
        raise InputError(f"{path}: has two columns of one name; get the file again.")
    inside = pd.to_numeric(table["in_tissue"], errors="coerce").to_numpy(np.float64) == 1
    table = table[inside]
    values = table[list(COLUMNS[2:])].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = int((~np.isfinite(values)).any(axis=1).sum())
    if wrong:
        raise InputError(
            f"{path}: expected numbers in the columns {', '.join(COLUMNS[2:])}, found others in "
            f"{wrong} of {len(values)} rows."
        )
    barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in table["barcode"]]
    return np.array(barcodes, dtype=str), values[:, [1, 0]], values[:, [3, 2]]


def scalefactors(outs: Outs) -> dict[str, Any]:
    """What scalefactors_json.json says; nothing where there is none."""
    return {} if outs.scalefactors is None else plain.read_json(outs.scalefactors)


def positive(table: dict[str, Any], key: str) -> float | None:
    """A number above 0 in a JSON object; None where it holds none."""
    value = table.get(key)
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and np.isfinite(value) and value > 0 else None


def matched(spots: Spots, matrix: tenx.Matrix, where: str) -> tuple[Spots, np.ndarray]:
    """The spots that the matrix has, in its order, and their rows in it.

    Raises:
      InputError: it has none of them, or names one twice.
    """
    rows = pd.Index(matrix.barcodes)
    if not rows.is_unique:
        twice = rows[rows.duplicated()][0]
        raise InputError(f"{matrix.path}: names the barcode {twice!r} twice; get the file again.")
    wells = labels.marks(matrix.barcodes)
    if wells:
        raise InputError(
            f"{matrix.path}: expected one capture area, found barcodes of {len(wells)} "
            f"({', '.join(map(repr, wells[:4]))} around them), as of an aggregated run; give the "
            "matrix that Space Ranger wrote for this one."
        )
    at = pd.Index(spots.barcodes).get_indexer(rows)
    found = np.flatnonzero(at >= 0)
    if not len(found):
        raise InputError(
            f"{where}: none of the {len(rows)} barcodes of {matrix.path} (such as {rows[0]!r}) is "
            f"among the {len(spots.barcodes)} spots in the tissue (such as "
            f"{str(spots.barcodes[0])!r}); both must be of one run, and aggregated counts have "
            "other barcodes than the runs that they came from."
        )
    return spots.take(at[found]), found


def slide(
    outs: Outs,
    name: str,
    step_um: tuple[float, float],
    scales: Callable[[dict[str, Any], float], dict[str, float | None]],
    *,
    counts: bool,
    um_per_px: float | None,
    fields: str,
) -> Slide:
    """The spots in the tissue as a slide, with counts or without; in pixels, without an image.

    Args:
      outs: its files.
      name: of the slide.
      step_um: micrometres that a column and a row of the array are apart.
      scales: from the scale factors and micrometres per pixel by the pitch: micrometres per pixel
        by their source, as `pitch.um_per_px` takes them.
      counts: whether they are needed; spots without a row in the matrix are then left out.
      um_per_px: micrometres per pixel, over what the files say.
      fields: section of the config that it comes from, for messages.

    Raises:
      InputError, FileNotFoundError: a file is damaged or missing, or two do not belong together.
    """
    where = f"slide {name!r} ({outs.folder})"
    spots = read_spots(outs.positions)
    per_um, _ = pitch.similarity(
        spots.array * step_um, spots.pixels, str(outs.positions), "array_row, array_col", True
    )
    by_file = scales(scalefactors(outs), 1.0 / per_um)
    given = {f"--config.{fields}.um_per_px": um_per_px}
    scale = pitch.um_per_px({**given, **by_file}, where)
    matrix, found = None, None
    if counts:
        matrix, found, spots = _with_matrix(outs, spots, where)
    return Slide(
        name=name,
        barcodes=spots.barcodes,
        coords_um=spots.pixels * scale,
        coords_in=spots.pixels,
        spatial_unit="pixel",
        counts=found,
        genes=None if matrix is None else matrix.genes,
        source=str(outs.folder),
    )


def _with_matrix(outs: Outs, spots: Spots, where: str):
    """The matrix, its counts of the spots that it has, and these."""
    if outs.matrix is None:
        raise FileNotFoundError(
            f"{outs.positions.parent}: expected counts, {' or '.join(_MATRICES[:2])} (or raw_...), "
            f"in {outs.folder} or its folder outs/, found none; get them from Space Ranger's outs."
        )
    matrix = tenx.open_matrix(outs.matrix)
    kept, rows = matched(spots, matrix, where)
    if len(kept.barcodes) < len(spots.barcodes):
        _LOG.info(
            "%s: %d of %d spots in the tissue have no counts in %s and are left out",
            where, len(spots.barcodes) - len(kept.barcodes), len(spots.barcodes), outs.matrix.name,
        )  # fmt: skip
    found = matrix.counts()
    return matrix, found if len(rows) == found.shape[0] else found[rows], kept


def find_image(folder: Path) -> Path | None:
    """The image that positions refer to; Space Ranger keeps no copy of it, downloads have one.

    In the folder itself, in `microscope_image/`, or beside it with the folder's name.

    Raises:
      InputError: there are several.
    """
    own = folder.parent if folder.name == "outs" else folder
    here = [p for root in dict.fromkeys((folder, own)) for p in _files(root)]
    here += [p for name in _IMAGE_FOLDERS for p in _files(folder / name)]
    here += [p for p in _files(own.parent) if p.stem == own.name]
    found = [p for p in here if is_image(p) and not _PICTURES.search(p.name)]
    if len(found) > 1:
        raise InputError(
            f"{folder}: expected one image of full resolution, found {len(found)} "
            f"({', '.join(p.name for p in found[:4])}); leave one, or name it in slides.csv "
            "(column image) to train, by --config.predict.image to predict."
        )
    return found[0] if found else None
