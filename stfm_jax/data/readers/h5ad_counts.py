"""Expression of some genes from an AnnData file of any size, without holding its counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset

from stfm_jax.data import feature_store
from stfm_jax.data.counts import are_counts, rounded
from stfm_jax.data.expression import normalize
from stfm_jax.data.hdf5 import opened, require_room_for
from stfm_jax.data.panel import GENE_COLUMNS, gene_names
from stfm_jax.data.readers import h5ad_elements as elements
from stfm_jax.data.readers import h5ad_group
from stfm_jax.data.readers.h5ad import reading
from stfm_jax.data.sparse import canonical

DENSE_AT_ONCE = 1 << 24  # numbers of a matrix stored dense


def read_expression(
    path: str | Path,
    barcodes: np.ndarray,
    genes: Sequence[str],
    normalization: str,
    counts_layer: str = "counts",
) -> np.ndarray | None:
    """Normalised expression [n, g] float32 of some spots and genes of a file, read in blocks.

    Args:
      path: of an AnnData file.
      barcodes: [n], in the order of the file.
      genes: [g].
      normalization: see `data.expression.normalize`.
      counts_layer: as in `slide_from_anndata`.

    Returns:
      None where the file has no raw counts of all these genes and spots.
    """
    with reading(path), opened(path) as file:
        place, of = h5ad_group.counts_of(file, counts_layer)
        if place is None or of is None or "obs" not in file:
            return None
        rows = _rows(file)
        spots = rows.reindex(barcodes, fill_value=-1).to_numpy()
        var = h5ad_group.table(file[of], GENE_COLUMNS.__contains__, file)
        names = gene_names(var, str(path))
        if (spots < 0).any() or not set(genes) <= set(names):
            return None
        # Names that occur twice are summed, as in `data.panel.sum_duplicates`.
        chosen = sp.csr_matrix(names[:, None] == np.asarray(genes)[None], dtype=np.float32)
        out = np.empty((len(spots), len(genes)), np.float32)
        stored, size = _row_store(file[place], str(path))
        for span in feature_store.spans(len(spots), size):
            first, last = spots[span[0]], spots[span[-1]]
            block = canonical(stored[first : last + 1], str(path)).astype(np.float32)
            counts = block[spots[span] - first]
            if not are_counts(counts.data):
                return None
            counts = rounded(counts, str(path))
            library = np.maximum(counts.sum(axis=1, dtype=np.float64).A1, 1.0)
            out[span] = normalize((counts @ chosen).toarray(), library, normalization)
        return out


def _rows(file: h5py.File) -> pd.Series:
    """Rows of the spots by name; of names that occur twice those in the tissue."""
    obs = h5ad_group.table(file["obs"], "in_tissue".__eq__, file)
    rows = pd.Series(np.arange(len(obs)), index=obs.index)
    if rows.index.is_unique:
        return rows
    inside = elements.in_tissue(anndata.AnnData(obs=obs), str(file.filename))
    rows = rows if inside is None else rows.iloc[inside]
    return rows[~rows.index.duplicated()]


def _row_store(element: h5py.Dataset | h5py.Group, where: str) -> tuple[Any, int]:
    """A stored matrix, to be sliced by rows, and how many of them to read together."""
    if isinstance(element, h5py.Dataset):
        return element, max(1, DENSE_AT_ONCE // element.shape[1])
    if element.attrs.get("encoding-type") == "csr_matrix":
        return sparse_dataset(element), feature_store.BLOCK
    require_room_for(element)  # by columns: it has no rows to be read
    return canonical(read_elem(element), where), feature_store.BLOCK
