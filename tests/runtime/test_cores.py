"""Pieces of linear algebra side by side: in order, each with one thread of BLAS."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from stfm_jax.runtime import cores


def blas_threads() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


def test_small_pieces_have_a_thread_each_and_stay_in_order():
    np.linalg.eigh(np.eye(3))  # so that BLAS is there
    before = blas_threads()
    found = cores.each(lambda i, j: (i, j, blas_threads()), [(i, 2 * i) for i in range(20)], 100)
    assert found == [(i, 2 * i, {1}) for i in range(20)]
    assert blas_threads() == before


def test_large_pieces_have_all_threads():
    before = blas_threads()
    assert cores.each(lambda: blas_threads(), [()], cores.SMALL + 1) == [before]


def test_what_a_piece_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        cores.each(lambda: 1 / 0, [(), ()], 10)
