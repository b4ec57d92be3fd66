"""By how much neighbours' expression moves a regression: the shares are those of the data."""

import numpy as np
import pytest

from stfm_jax.regression import moved

TRUTH = np.array([[0.5, 0.2, -0.3]] * 4 + [[0.1, 0.6, -0.6]] * 2).T.astype(np.float32)


def problem(n, seed=0, noise=0.3):
    """Terms [n, 3, 6] and residuals [n, 6] that follow TRUTH."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(n, 3, 6)).astype(np.float32)
    return found, moved.move(TRUTH, found) + noise * rng.normal(size=(n, 6))


def test_many_spots_tell_the_shares_of_every_gene():
    shares = moved.fit_shares(*map(np.asarray, problem(100_000)))
    np.testing.assert_allclose(shares, TRUTH, atol=0.02)


def test_few_spots_lean_on_all_genes_together():
    found, residuals = map(np.asarray, problem(40, noise=2.0))
    shares = moved.fit_shares(found, residuals)
    flat = found.transpose(0, 2, 1).reshape(-1, 3)
    common = np.linalg.lstsq(flat, residuals.reshape(-1), rcond=None)[0]
    assert np.abs(shares - common[:, None]).max() < 0.1
    alone = [np.linalg.lstsq(found[:, :, g], residuals[:, g], rcond=None)[0] for g in range(6)]
    assert np.abs(np.array(alone).T - common[:, None]).max() > 0.3


@pytest.mark.parametrize("silent", [(0,), (0, 1, 2)])
def test_a_term_that_says_nothing_has_no_share(silent):
    found, residuals = map(np.array, problem(300))
    found[:, silent] = 0.0
    shares = moved.fit_shares(found, residuals)
    np.testing.assert_array_equal(shares[list(silent)], 0.0)
    assert np.isfinite(shares).all() and (np.abs(shares).max() > 0.1) == (len(silent) < 3)
