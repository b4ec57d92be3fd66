"""Tables of counts as text, a row a spot and a column a gene, read without a dense matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.readers import plain


def read(path: Path, sep: str) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Barcodes [n], genes [G] and counts [n, G] of a table, one dense row at a time.

    Parsed by hand: pandas takes five times as long for a table of 15,000 columns.

    Args:
      path: text with a header, gzipped or not; the first cell of a row is its barcode.
      sep: between cells.

    Raises:
      One of `plain.DAMAGED`: it is empty or damaged.
    """
    barcodes, rows = [], []
    with plain.open_bytes(path) as file:
        header = file.readline().decode().rstrip("\r\n").split(sep)
        genes = np.array([cell.strip('"') for cell in header[1:]], dtype=str)
        for line in file:
            if line.strip():
                barcode, *values = line.decode().rstrip("\r\n").split(sep)
                barcodes.append(barcode.strip('"'))
                rows.append(sp.csr_matrix(np.array(values, dtype=np.float32)))
    if len(genes) == 0 or len(rows) == 0:
        raise ValueError("no genes or no spots")
    counts = sp.csr_matrix(sp.vstack(rows))
    if counts.shape[1] != len(genes):
        raise ValueError(f"{len(genes)} gene names, but {counts.shape[1]} columns")
    return np.array(barcodes, dtype=str), genes, counts
