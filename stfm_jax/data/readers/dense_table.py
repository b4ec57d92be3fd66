"""Tables of counts as text, a row a spot and a column a gene, read without a dense matrix."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.readers import plain


def read(path: Path, sep: str) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Barcodes [n], genes [G] and counts [n, G] of a table, row by row.

    Parsed by hand, and only what is not "0": pandas takes many times as long for a table of 15,000
    columns. What R writes is taken too; see `plain`.

    Args:
      path: text with a header, gzipped or not; the first cell of a row is its barcode.
      sep: between cells.

    Raises:
      Whatever reading a file that is empty or damaged gives; to be called in `plain.reading`.
    """
    barcodes, rows, widths = [], [], set()
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
            rows.append(_kept(values))
            widths.add(len(values))
    if len(genes) == 0:
        raise ValueError("no genes or no spots")
    if others := widths - {len(genes)}:
        raise ValueError(f"{len(genes)} gene names, but {max(others)} columns")
    columns, counts = zip(*rows, strict=True)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
    matrix = np.concatenate(counts), np.concatenate(columns), indptr
    return np.array(barcodes, dtype=str), genes, sp.csr_matrix(matrix, (len(rows), len(genes)))


def _kept(values: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and numbers of a row's cells that are not 0."""
    columns = np.array([i for i, value in enumerate(values) if value != "0"], np.int32)
    numbers = np.array([values[i] for i in columns], np.float32)
    return columns[numbers != 0], numbers[numbers != 0]
