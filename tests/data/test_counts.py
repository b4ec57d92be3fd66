"""What is a count, and what once was one."""

import logging

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data import counts


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
        ([-1e-6], False),
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
