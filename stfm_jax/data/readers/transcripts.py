"""Tables of single molecules (Xenium, MERSCOPE, or gene, x, y), added up in square bins.

One slide for each table: `<dir>/<slide>.parquet`, `.csv` or `.csv.gz`, or a folder
`<dir>/<slide>/` as the instruments write it. A table is read batch by batch; what is held grows
with the bins and genes that have molecules, not with the molecules.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import scipy.sparse as sp
from scipy.ndimage import binary_closing

from stfm_jax.data.counts import is_count
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import plain
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

MIN_QUALITY = 20.0  # of Xenium's `qv`, the instrument's own threshold
_LAYOUTS = (  # gene, x, y in micrometres; a MERSCOPE table's x and y are pixels of a field of view
    ("feature_name", "x_location", "y_location"),
    ("gene", "global_x", "global_y"),
    ("gene", "x", "y"),
)
_QUALITY = "qv"
# Columns of how many molecules a row stands for, in lower case; the first that is there.
_NUMBERS = ("midcount", "midcounts", "umicount", "umicounts", "umi_count", "umi", "count", "counts")
CONTROLS = re.compile(  # features of Xenium and MERSCOPE that are no genes
    r"(?i)^(?:negcontrol|blank[-_]|antisense_|intergenic_|unassignedcodeword|deprecatedcodeword)"
)
_TABLES = (".parquet", ".csv", ".csv.gz")
_BUNDLES = ("transcripts", "detected_transcripts")  # names of the table in an instrument's folder
_GAPS = 2  # bins; tissue encloses an empty bin where it is no farther on either side [ours]
_FARTHEST_UM = 1e12  # whatever lies farther is no place; bins are counted in whole numbers
_MOST_BINS = 1 << 28  # of the rectangle around the tissue
_LOG = logging.getLogger("stfm_jax")


def tables(root: str | Path) -> dict[str, Path]:
    """The table of every slide of a folder, by the slide's name, sorted.

    Raises:
      InputError: there is none.
    """
    root = Path(root)
    found = {}
    for suffix in reversed(_TABLES):  # parquet is read where a table is there twice
        found |= {p.name.removesuffix(suffix): p for p in visible(root, f"*{suffix}")}
        for bundle in _BUNDLES:
            found |= {p.parent.name: p for p in visible(root, f"*/{bundle}{suffix}")}
    if not found:
        raise InputError(
            f"{root}: expected a table of molecules for each slide, <slide>.parquet, <slide>.csv "
            f"or <slide>.csv.gz, or folders <slide>/{_BUNDLES[0]}.parquet; found none."
        )
    return dict(sorted(found.items()))


def read(path: str | Path, name: str, bin_um: float) -> Slide:
    """Adds up the molecules of a table in square bins; control features are left out.

    Bins without molecules that tissue encloses are spots without counts.

    Args:
      path: columns feature_name, x_location, y_location (and qv: at least MIN_QUALITY); gene,
        global_x, global_y; or gene, x, y. Micrometres. And, where a row is several molecules, their
        number, as `count` or `MIDCount`.
      name: of the slide.
      bin_um: side of the bins.

    Raises:
      InputError: the table is damaged, lacks the columns, or holds no molecules; coordinates are
        no numbers, or no micrometres.
    """
    path = Path(path)
    if not bin_um > 0:
        raise InputError(f"config.data.bin_um must be above 0 micrometres, found {bin_um:g}.")
    parts = [_binned(batch, path, bin_um) for batch in _batches(path)]
    if not sum(map(len, parts)):
        raise InputError(
            f"{path}: has no molecules of genes (of quality {MIN_QUALITY:g} or more, where it says "
            "so); get the file again."
        )
    sums = _summed(pd.concat(parts))
    bins = sums[["i", "j"]].to_numpy()
    spots, row = _tissue(bins, path, bin_um)
    genes, column = np.unique(sums["gene"].to_numpy().astype(str), return_inverse=True)
    counts = sp.csr_matrix(
        (sums["n"].to_numpy(np.float32), (row, column)), shape=(len(spots), len(genes))
    )
    names = spots.astype(str)
    _LOG.info(
        "%s: %d molecules in %d bins of %g um", path, counts.data.sum(dtype=int), len(spots), bin_um
    )
    return Slide(
        name=name,
        barcodes=np.char.add(np.char.add(names[:, 0], "x"), names[:, 1]),
        coords_um=(spots + 0.5) * bin_um,
        counts=counts,
        genes=genes,
        source=str(path),
    )


def _batches(path: Path) -> Iterator[pd.DataFrame]:
    """Columns gene, x, y and, where there are such, qv and n, how many molecules a row is."""
    with plain.reading(path, "a table of molecules"):
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                columns = _columns(file.schema_arrow.names, path)
                for batch in file.iter_batches(columns=list(columns)):
                    yield batch.to_pandas().rename(columns=columns)
        else:
            with pyarrow.csv.open_csv(path) as file:
                columns = _columns(file.schema.names, path)
            types = {name: pa.string() if columns[name] == "gene" else pa.float64()
                     for name in columns}  # fmt: skip
            options = pyarrow.csv.ConvertOptions(
                include_columns=list(columns), column_types=types, strings_can_be_null=False
            )
            with pyarrow.csv.open_csv(path, convert_options=options) as file:
                for batch in file:
                    yield batch.to_pandas().rename(columns=columns)


def _columns(found: list[str], path: Path) -> dict[str, str]:
    """Ours by theirs."""
    for layout in _LAYOUTS:
        if set(layout) <= set(found):
            quality = {_QUALITY: _QUALITY} if _QUALITY in found else {}
            lower = {name.lower(): name for name in reversed(found)}
            number = next((lower[name] for name in _NUMBERS if name in lower), None)
            more = {} if number is None else {number: "n"}
            return dict(zip(layout, ("gene", "x", "y"), strict=True)) | quality | more
    wanted = "; or ".join(", ".join(layout) for layout in _LAYOUTS)
    raise InputError(f"{path}: expected the columns {wanted}; found {', '.join(found)}.")


def _binned(molecules: pd.DataFrame, path: Path, bin_um: float) -> pd.DataFrame:
    """Numbers n of molecules by bin (i, j) and gene."""
    if _QUALITY in molecules:
        molecules = molecules[molecules[_QUALITY] >= MIN_QUALITY]
    places = molecules[["x", "y"]].to_numpy(np.float64)
    wrong = int((~(np.abs(places) < _FARTHEST_UM)).any(axis=1).sum())  # NaN is none of these
    if wrong:
        raise InputError(
            f"{path}: {wrong} molecules have coordinates that are not finite numbers, or "
            "no micrometres."
        )
    i, j = np.floor(places / bin_um).astype(np.int64).T
    gene = molecules["gene"]
    if len(gene) and isinstance(gene.iloc[0], bytes):  # of early Xenium files
        gene = gene.str.decode("utf-8")
    sums = _summed(
        pd.DataFrame({"i": i, "j": j, "gene": gene.to_numpy(), "n": _number_of(molecules, path)})
    )
    return sums[~sums["gene"].astype(str).str.match(CONTROLS)]


def _number_of(molecules: pd.DataFrame, path: Path) -> np.ndarray | int:
    """How many molecules each row stands for."""
    if "n" not in molecules:
        return 1
    number = molecules["n"].to_numpy(np.float64)
    wrong = number[~is_count(number)]
    if len(wrong):
        raise InputError(
            f"{path}: expected whole numbers of molecules in its column of counts, found "
            f"{wrong[0]:.9g}; take the column out if it is something else."
        )
    return number.astype(np.int64)


def _summed(molecules: pd.DataFrame) -> pd.DataFrame:
    return molecules.groupby(["i", "j", "gene"], as_index=False, observed=True)["n"].sum()


def _tissue(bins: np.ndarray, path: Path, bin_um: float) -> tuple[np.ndarray, np.ndarray]:
    """The bins [n, 2] of the tissue, and the place [m] among them of each of `bins` [m, 2]."""
    corner = bins.min(axis=0)
    shape = tuple(bins.max(axis=0) - corner + 1)
    if np.prod(shape, dtype=float) > _MOST_BINS:
        raise InputError(
            f"{path}: its molecules span {shape[0] * bin_um:g} x {shape[1] * bin_um:g} um, "
            f"{shape[0]} x {shape[1]} bins; give coordinates in micrometres, or raise "
            "--config.data.bin_um."
        )
    occupied = np.zeros(shape, bool)
    occupied[tuple((bins - corner).T)] = True
    whole = np.ones((3, 3), bool)
    around = binary_closing(np.pad(occupied, _GAPS), whole, iterations=_GAPS)
    tissue = around[_GAPS:-_GAPS, _GAPS:-_GAPS] | occupied
    place = np.cumsum(tissue).reshape(shape) - 1
    return np.argwhere(tissue) + corner, place[tuple((bins - corner).T)]
