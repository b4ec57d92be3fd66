"""Expression of some genes from an AnnData file of any size, without holding its counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset

from stfm_jax.data import feature_store
from stfm_jax.data.expression import normalize
from stfm_jax.data.panel import gene_names
from stfm_jax.data.readers.h5ad import reading
from stfm_jax.data.slide import is_count

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
    with reading(path), h5py.File(path) as file:
        matrix = file.get(f"layers/{counts_layer}", file.get("X"))
        if matrix is None or not {"obs", "var"} <= file.keys():
            return None
        spots = read_elem(file["obs"]).index.astype(str).get_indexer(barcodes)
        names = gene_names(read_elem(file["var"]), str(path))
        if (spots < 0).any() or not set(genes) <= set(names):
            return None
        # Names that occur twice are summed, as in `data.panel.sum_duplicates`.
        chosen = sp.csr_matrix(names[:, None] == np.asarray(genes)[None], dtype=np.float32)
        out = np.empty((len(spots), len(genes)), np.float32)
        stored, size = _row_store(matrix)
        for span in feature_store.spans(len(spots), size):
            first, last = spots[span[0]], spots[span[-1]]
            counts = sp.csr_matrix(stored[first : last + 1], dtype=np.float32)[spots[span] - first]
            if not is_count(counts.data).all():
                return None
            library = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
            out[span] = normalize((counts @ chosen).toarray(), library, normalization)
        return out


def _row_store(element: h5py.Dataset | h5py.Group) -> tuple[Any, int]:
    """A stored matrix, to be sliced by rows, and how many of them to read together."""
    if isinstance(element, h5py.Dataset):
        return element, max(1, DENSE_AT_ONCE // element.shape[1])
    if element.attrs.get("encoding-type") == "csr_matrix":
        return sparse_dataset(element), feature_store.BLOCK
    return sp.csr_matrix(
        read_elem(element)
    ), feature_store.BLOCK  # by columns: has no rows to be read
