"""Matrices of counts as 10x Genomics writes them: `.h5` of Cell Ranger 2 and later, and `.mtx`.

    filtered_feature_bc_matrix.h5                  /matrix/{barcodes,data,indices,indptr,shape},
                                                   /matrix/features/{id,name,feature_type}
    filtered_gene_bc_matrices_h5.h5                a group for each genome, with genes, gene_names
    [PREFIX_]{matrix.mtx,barcodes.tsv,features.tsv}[.gz]   or genes.tsv, in a folder

Space Ranger and Xenium write the first; where spots lie is not in them. Stored are features x
barcodes by columns, which is barcodes x features by rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stfm_jax.data.hdf5 import decode_strings, open_hdf5, opened, require_file, require_room_for
from stfm_jax.data.panel import gene_names
from stfm_jax.data.readers import plain
from stfm_jax.errors import InputError

GENE_EXPRESSION = "Gene Expression"
VALUES_AT_ONCE = 1 << 24  # read together
_MATRIX = ("barcodes", "data", "indices", "indptr", "shape")
_GET = "Give a matrix of 10x Genomics, such as filtered_feature_bc_matrix.h5."
_MEND = "get the file again, or write it anew by Space Ranger, Cell Ranger or Xenium Ranger."


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The names in a matrix; its counts are read by `counts`."""

    path: Path  # the .h5, or the .mtx
    barcodes: np.ndarray  # [n] str
    genes: np.ndarray  # [G] str, each once
    column: np.ndarray  # [F] int64, where each feature of the file is among the genes; -1: nowhere
    group: str  # of the .h5

    def counts(self, genes: Sequence[str] | None = None) -> sp.csr_matrix:
        """Counts [n, G] float32 of all genes, or [n, g] of these; of the file no more is held.

        Raises:
          InputError: the file is damaged.
          KeyError: a gene is not there.
        """
        column, wide = self.column, len(self.genes)
        if genes is not None:
            at = {gene: i for i, gene in enumerate(self.genes)}
            new = np.full(wide + 1, -1)
            new[[at[gene] for gene in genes]] = np.arange(len(genes))
            column, wide = new[column], len(genes)
        if self.path.suffix == ".h5":
            return _h5_counts(self, column, wide)
        stored = _read_mtx(self.path)
        if stored.shape != (len(column), len(self.barcodes)):
            raise _mismatch(self.path, stored.shape, (len(column), len(self.barcodes)))
        kept = column[stored.row] >= 0
        where = stored.col[kept], column[stored.row[kept]]
        shape = (len(self.barcodes), wide)
        return sp.csr_matrix((stored.data[kept].astype(np.float32), where), shape=shape)


def is_matrix(path: Path) -> bool:
    """Whether an HDF5 file looks like a matrix of 10x."""
    try:
        with opened(path) as file:
            return _group(file) is not None
    except InputError:  # of several genomes, or not to be read
        return True
    except Exception:  # no HDF5, or a damaged one: not for this reader to say
        return False


def open_matrix(path: str | Path) -> Matrix:
    """The names in a matrix; features other than gene expression are left out.

    Genes are known by symbol, or by Ensembl id where the file has no symbol; those that share a
    name are added up.

    Args:
      path: an `.h5` file, or a `matrix.mtx[.gz]` with its tables beside it.

    Raises:
      FileNotFoundError: there is no such file, or a table beside it is missing.
      InputError: it is damaged, holds several genomes apart or no gene expression.
    """
    path = Path(path)
    if path.suffix == ".h5":
        return _open_h5(path)
    prefix = path.name[: path.name.index("matrix.mtx")]
    barcodes = _table(path, prefix, ("barcodes.tsv",))
    features = _table(path, prefix, ("features.tsv", "genes.tsv"))
    ids = features.iloc[:, 0].to_numpy(dtype=str)
    names = features.iloc[:, min(1, features.shape[1] - 1)].to_numpy(dtype=str)
    types = features.iloc[:, 2].to_numpy(dtype=str) if features.shape[1] > 2 else None
    genes, column = _columns(ids, names, types, path)
    return Matrix(path, barcodes.iloc[:, 0].to_numpy(dtype=str), genes, column, "")


def _open_h5(path: Path) -> Matrix:
    with open_hdf5(path, (), _GET, _MEND) as file:
        group = _group(file)
        if group is None:
            raise InputError(
                f"{path}: expected a matrix of 10x Genomics (the group `matrix`, or one named by a "
                f"genome, with {', '.join(_MATRIX)}), found {', '.join(sorted(file)) or 'nothing'}."
            )
        stored = file[group]
        require_room_for(stored)
        features = stored["features"] if "features" in stored else stored
        v3 = "features" in stored
        lacking = [k for k in (("id", "name") if v3 else ("genes", "gene_names"))
                   if k not in features]  # fmt: skip
        if lacking:
            raise InputError(f"{path}: {features.name} has no {' nor '.join(lacking)}; {_MEND}")
        ids, names = (
            decode_strings(features[k][()])
            for k in (("id", "name") if v3 else ("genes", "gene_names"))
        )
        types = decode_strings(features["feature_type"][()]) if "feature_type" in features else None
        barcodes = decode_strings(stored["barcodes"][()])
        shape = tuple(int(k) for k in stored["shape"][()])
    expected = (len(ids), len(barcodes))
    if shape != expected or len(names) != len(ids):
        raise _mismatch(path, shape, expected)
    genes, column = _columns(ids, names, types, path)
    return Matrix(path, barcodes, genes, column, group)


def _group(file: h5py.File) -> str | None:
    """Of the matrix; None where there is none.

    Raises:
      InputError: there are several, one for each genome.
    """
    found = [
        name
        for name, group in file.items()
        if isinstance(group, h5py.Group) and group.keys() >= set(_MATRIX)
    ]
    if len(found) > 1:
        raise InputError(
            f"{file.filename}: expected one matrix, found {len(found)}, of the genomes "
            f"{', '.join(sorted(found))}; give one of them in a file of its own."
        )
    return found[0] if found else None


def _columns(
    ids: np.ndarray, names: np.ndarray, types: np.ndarray | None, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Names of the genes, each once, and where each feature is among them."""
    kept = np.arange(len(ids)) if types is None else np.flatnonzero(types == GENE_EXPRESSION)
    if not len(kept):
        there = "no features" if types is None else ", ".join(sorted(set(types))) or "none"
        raise InputError(
            f"{path}: expected features of the type {GENE_EXPRESSION!r}, found {there}; give the "
            "matrix of the gene expression."
        )
    symbols = np.where(names == "", ids, names)[kept]
    found = gene_names(pd.DataFrame(index=pd.Index(symbols)), str(path))
    place, genes = pd.factorize(found)
    column = np.full(len(ids), -1)
    column[kept] = place
    return np.asarray(genes, dtype=str), column


def _h5_counts(matrix: Matrix, column: np.ndarray, wide: int) -> sp.csr_matrix:
    """Of an .h5, read some values at a time."""
    n, parts = len(matrix.barcodes), []
    with open_hdf5(matrix.path, (), _GET, _MEND) as file:
        stored = file[matrix.group]
        starts = stored["indptr"][()].astype(np.int64)
        values = len(stored["data"])
        if len(starts) != n + 1 or starts[0] or starts[-1] != values or (np.diff(starts) < 0).any():
            raise InputError(f"{matrix.path}: its indptr does not fit its data; {_MEND}")
        first = 0
        while first < n:
            last = int(np.searchsorted(starts, starts[first] + VALUES_AT_ONCE, side="right")) - 1
            last = min(max(last, first + 1), n)
            span = slice(starts[first], starts[last])
            feature = stored["indices"][span]
            if len(feature) and not 0 <= feature.min() <= feature.max() < len(column):
                raise InputError(f"{matrix.path}: its indices name features it has not; {_MEND}")
            data = stored["data"][span].astype(np.float32)
            parts.append(_rows(data, column[feature], starts[first : last + 1], wide))
            first = last
    return sp.csr_matrix(sp.vstack(parts, format="csr") if parts else sp.csr_matrix((0, wide)))


def _rows(data: np.ndarray, column: np.ndarray, starts: np.ndarray, wide: int) -> sp.csr_matrix:
    """Rows of the matrix; values in column -1 are left out, such in one place added up."""
    kept = column >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    places = column[kept].astype(np.int32), before[starts - starts[0]].astype(np.int64)
    rows = sp.csr_matrix((data[kept], *places), shape=(len(starts) - 1, wide))
    rows.sum_duplicates()
    return rows


def _table(path: Path, prefix: str, names: Sequence[str]) -> pd.DataFrame:
    """A table beside an .mtx, without a header."""
    tried = [path.parent / f"{prefix}{name}{end}" for name in names for end in (".gz", "")]
    found = next((p for p in tried if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path.parent}: expected {' or '.join(prefix + name for name in names)} (or .gz) "
            f"beside {path.name}, found neither; {_MEND}"
        )
    return plain.read_table(found, "\t")


def _read_mtx(path: Path) -> sp.coo_matrix:
    """By pandas: scipy's own reader ends the process at some damaged files."""
    require_file(path, _GET)
    with plain.reading(path, "a matrix in the format of Matrix Market"):
        with plain.open_bytes(path) as file:
            if not file.readline().lower().startswith(b"%%matrixmarket matrix coordinate"):
                raise ValueError("no %%MatrixMarket matrix coordinate in its first line")
            line = file.readline()
            while line.startswith(b"%"):
                line = file.readline()
            rows, columns, values = map(int, line.split())
            types = {"row": np.int32, "column": np.int32, "value": np.float32}
            table = pd.read_csv(file, sep=r"\s+", header=None, names=list(types), dtype=types)
        row, column = table["row"].to_numpy() - 1, table["column"].to_numpy() - 1
        if len(table) != values:
            raise ValueError(f"{len(table)} values, not {values}")
        return sp.coo_matrix((table["value"].to_numpy(), (row, column)), shape=(rows, columns))


def _mismatch(path: Path, shape: tuple, expected: tuple) -> InputError:
    return InputError(
        f"{path}: expected a matrix of {expected[0]} features and {expected[1]} barcodes, which it "
        f"names, found {' x '.join(map(str, shape))}; {_MEND}"
    )
