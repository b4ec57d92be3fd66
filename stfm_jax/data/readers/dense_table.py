"""Tables of counts as text, a row a spot and a column a gene, read without a dense matrix."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.readers import plain


def read(path: Path, sep: str) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Barcodes [n], genes [G] and counts [n, G] of a table, one dense row at a time.

    Parsed by hand: pandas takes five times as long for a table of 15,000 columns. What R writes is
    taken too; see `plain`.

    Args:
      path: text with a header, gzipped or not; the first cell of a row is its barcode.
      sep: between cells.

    Raises:
      Whatever reading a file that is empty or damaged gives; to be called in `plain.reading`.
    """
    barcodes, rows = [], []
    with plain.open_bytes(path) as file:
        lines = (text for line in file if (text := line.decode("utf-8-sig").rstrip("\r\n")).strip())
        first = list(itertools.islice(lines, 2))
        if len(first) < 2:
            raise ValueError("no genes or no spots")
        form = plain.form_of(first, sep)
        genes = np.array(form.header[1:], dtype=str)
        for line in itertools.chain(first[1:], lines):
            barcode, *values = line.replace('"', "").split(form.sep)
            values = values[:-1] if form.trailing else values
            if form.commas:
                values = [value.replace(",", ".") for value in values]
            barcodes.append(barcode.strip())
            rows.append(sp.csr_matrix(np.array(values, dtype=np.float32)))
    if len(genes) == 0:
        raise ValueError("no genes or no spots")
    counts = sp.csr_matrix(sp.vstack(rows))
    if counts.shape[1] != len(genes):
        raise ValueError(f"{len(genes)} gene names, but {counts.shape[1]} columns")
    return np.array(barcodes, dtype=str), genes, counts
