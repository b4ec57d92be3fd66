"""One form of sparse matrices of counts, and those that are none."""

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data import sparse
from stfm_jax.errors import InputError


def test_one_form_of_sparse_matrices():
    """Parts are added up, zeros taken out, what is somebody else's is left alone."""
    parts = sp.csr_matrix((np.array([1.0, 42.0, 0.0]), np.array([1, 1, 0]), [0, 2, 3]), (2, 2))
    found = sparse.canonical(parts, "a")
    np.testing.assert_array_equal(found.toarray(), [[0, 43], [0, 0]])
    assert found.nnz == 1 and found.has_canonical_format and parts.nnz == 3
    zero = sp.csr_matrix((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2])), (1, 2))
    assert sparse.canonical(zero, "a").nnz == 1 and zero.nnz == 2
    good = sp.csr_matrix([[0.0, 1.0]])
    assert np.shares_memory(sparse.canonical(good, "a").data, good.data)
    assert sparse.canonical(np.array([[0, 5]]), "a").nnz == 1


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [([0, 2], [0, 1, 2]), ([0, -1], [0, 1, 2]), ([0, 1], [0, 2, 1]), ([0, 1], [0, 1, 3])],
)
def test_indices_outside_are_refused(indices, indptr):
    broken = sp.csr_matrix((2, 2))
    broken.data, broken.indices = np.ones(2), np.array(indices, np.int32)
    broken.indptr = np.array(indptr, np.int32)
    with pytest.raises(InputError, match=r"slide X: counts is damaged, .* shape \(2, 2\)"):
        sparse.check_structure(broken, "counts", "slide X")


def test_what_is_not_compressed_is_not_looked_at():
    sparse.check_structure(np.ones((2, 2)), "counts", "a")
    sparse.check_structure(sp.coo_matrix(np.eye(2)), "counts", "a")
    sparse.check_structure(sp.csc_matrix(np.eye(2)), "counts", "a")


def test_rows_without_counts_are_sound():
    for form in (sp.csr_matrix, sp.csc_matrix):
        sparse.check_structure(form([[0, 1, 0], [0, 0, 0], [2, 0, 0]]), "counts", "a")
        sparse.check_structure(form((3, 2)), "counts", "a")
