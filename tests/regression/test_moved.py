"""By how much neighbours' expression moves a regression: the shares are those of the data."""

import numpy as np
import pytest

from stfm_jax.ops.context import Context
from stfm_jax.regression import moved, regressors

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


def test_a_genes_shares_are_drawn_toward_the_common_ones_by_a_thousand_spots():
    """As least squares with so many more spots that say what all genes together do."""
    found, residuals = map(np.asarray, problem(800))
    found = found * np.array([1.0, 0.5, 2.0], np.float32)[:, None]
    flat = found.transpose(0, 2, 1).reshape(-1, 3)
    common = np.linalg.lstsq(flat, residuals.reshape(-1), rcond=None)[0]
    more = np.diag(np.sqrt(1000.0 * (flat.astype(np.float64) ** 2).mean(axis=0)))
    for gene, shares in enumerate(moved.fit_shares(found, residuals).T):
        x = np.concatenate([found[:, :, gene], more])
        y = np.concatenate([residuals[:, gene], more @ common])
        np.testing.assert_allclose(shares, np.linalg.lstsq(x, y, rcond=None)[0], atol=2e-6)


def test_terms_are_weighted_means_of_known_neighbours():
    known = np.array([[True, True, False], [False, False, False]])
    context = Context(
        features=np.zeros((2, 3, 1), np.float32),
        distance=np.zeros((2, 3, 2), np.float32),
        weight=np.array([[0.3, 0.1, 0.6], [0.5, 0.5, 0.0]], np.float32),
        known=known,
        expr=np.array([[[4.0], [8.0], [9.0]], [[1.0], [1.0], [1.0]]], np.float32),
        residual=np.array([[[1.0], [-3.0], [9.0]], [[1.0], [1.0], [1.0]]], np.float32),
    )
    found = moved.terms(context, np.array([[7.0], [7.0]], np.float32), np.array([2.0], np.float32))
    np.testing.assert_allclose(found, [[[0.0], [3.0], [5.0]], [[0.0]] * 3], atol=1e-6)


SIZES = (30, 20, 24)


def sections(number, seed=0):
    """Features, expression (linear in them, and another level in each section) and places."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(n, 4)) for n in SIZES[:number]]
    y = [3.0 * i + part[:, :2] + 0.1 * rng.normal(size=(len(part), 2)) for i, part in enumerate(x)]
    return x, y, [rng.uniform(size=(len(part), 2)) * 1000.0 for part in x]


def test_residuals_are_about_what_saw_neither_section():
    """Without a regressor: about the mean of the third."""
    x, y, coords = sections(3)
    seen = moved.residuals_seen("none", x, y, coords, None, 0)
    for i in range(3):
        for j, found in enumerate(seen(i)):
            others = [y[k] for k in range(3) if k not in (i, j)]
            np.testing.assert_allclose(found, y[j] - np.concatenate(others).mean(axis=0), atol=1e-9)


def test_where_no_section_is_left_the_mean_of_all_stands_in():
    x, y, coords = sections(2)
    own, other = moved.residuals_seen("none", x, y, coords, None, 0)(0)
    np.testing.assert_allclose(own, y[0] - y[1].mean(axis=0))
    np.testing.assert_allclose(other, y[1] - np.concatenate(y).mean(axis=0))


def test_a_regressor_sees_neither_section_either():
    x, y, coords = sections(3)
    choice = regressors.Choice(1e-6, np.nan, np.nan)
    found = moved.residuals_seen("ridge", x, y, coords, choice, 0)(0)[1]
    fitted = regressors.fit("ridge", x[2], y[2], choice, 0)
    np.testing.assert_allclose(found, y[1] - regressors.predict(fitted, x[1]), atol=1e-6)


def test_where_no_section_is_left_a_regressor_sees_the_sections_other_blocks():
    x, y, coords = sections(2)
    choice = regressors.Choice(1e-6, np.nan, np.nan)
    found = moved.residuals_seen("ridge", x, y, coords, choice, 3)(0)[1]
    blocks = regressors.leave_out_groups([SIZES[1]], [coords[1]], 3)
    for block in np.unique(blocks):
        out = blocks == block
        fitted = regressors.fit("ridge", x[1][~out], y[1][~out], choice, 3)
        expected = y[1][out] - regressors.predict(fitted, x[1][out])
        np.testing.assert_allclose(found[out], expected, atol=1e-6)
