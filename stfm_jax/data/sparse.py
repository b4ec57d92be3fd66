"""Sparse matrices of counts in one form, whatever the file had: each place once, no zeros.

A count that is stored in parts counts as their sum, as for scipy and anndata. Indices that lie
outside are found before scipy's compiled code goes through them, which does not look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from stfm_jax.errors import InputError

LIMIT = 1 << 24  # float32 holds every whole number below


def check_structure(matrix: Any, what: str, where: str) -> None:
    """Raises InputError for a sparse matrix whose indices do not fit its shape; takes anything."""
    if not sp.issparse(matrix) or matrix.format not in ("csr", "csc"):
        return
    try:
        if (np.diff(matrix.indptr) < 0).any():  # scipy looks only where the last is above 0
            raise ValueError("the bounds of its rows do not ascend")
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise InputError(
            f"{where}: {what} is damaged, its indices do not fit its shape {matrix.shape} "
            f"({error}); write the file again."
        ) from error


def canonical(matrix: Any, where: str) -> sp.csr_matrix:
    """A matrix by rows, sorted, each place once, no zeros stored; a copy where it was not so.

    Args:
      matrix: sparse, or an array.
      where: how messages name the slide.

    Raises:
      InputError: its indices do not fit its shape.
    """
    check_structure(matrix, "the matrix of counts", where)
    rows = sp.csr_matrix(matrix)
    if not rows.has_canonical_format:
        rows = rows.copy()  # it may be somebody else's
        rows.sum_duplicates()
    if not rows.data.all():
        rows = rows.copy()
        rows.eliminate_zeros()
    return rows
