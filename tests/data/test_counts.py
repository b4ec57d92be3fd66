"""What is a count, what once was one, and one form for sparse matrices of them."""

import logging

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data import counts, sparse
from stfm_jax.errors import InputError


def test_whole_numbers_that_are_not_negative():
    values = np.array([0.0, 1.0, 2.5, -1.0, np.nan, np.inf, 1e9])
    np.testing.assert_array_equal(counts.is_count(values), [1, 1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("values", "were"),
    [
        ([0.0, 1.0, 7.0], True),
        ([29.0001, 3.0009], True),
        ([3.0011], False),
        ([20_000.04], True),  # 1e-3 + 2e-6 of it
        ([20_000.05], False),
        ([1e6 + 0.09], True),  # never off by more than a tenth
        ([1e6 + 0.12], False),
        ([5e-7], True),
        ([-5e-7], True),
        ([5e-4], False),  # nearer to nothing than counts come
        ([-0.5], False),
        ([np.nan], False),
        ([np.inf], False),
    ],
)
def test_what_went_through_logarithms_is_known(values, were):
    assert counts.are_counts(np.array(values)) is were


def test_what_is_off_is_rounded_and_said(caplog):
    exact = sp.csr_matrix([[0.0, 3.0], [1.0, 0.0]])
    assert counts.rounded(exact, "a") is exact
    other = sp.csr_matrix([[0.0, 3.5], [1.0, 0.0]])
    assert counts.rounded(other, "a") is other
    near = sp.csr_matrix([[1e-7, 3.0004], [0.9998, 0.0]])
    with caplog.at_level(logging.INFO, "stfm_jax"):
        found = counts.rounded(near, "slide X")
    np.testing.assert_array_equal(found.toarray(), [[0, 3], [1, 0]])
    assert found.nnz == 2 and near.nnz == 3
    assert caplog.messages == ["slide X: counts are off integers by up to 0.0004, and rounded"]


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
