"""Targets in units of their slide, and predictions on few axes."""

from __future__ import annotations

import numpy as np

from stfm_jax.regression import regressors, targets

RNG = np.random.default_rng(0)
Y = [RNG.normal(size=(n, 6)) * (1 + i) + i for i, n in enumerate((40, 30))]


def test_slides_are_scaled_each_by_itself_and_come_back():
    y = [part.copy() for part in Y]
    y[1][:, 2] = 3.0
    scaled, scale = targets.per_slide(y)
    for part in scaled:
        np.testing.assert_allclose(part.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(scaled[0].std(axis=0), 1.0)
    np.testing.assert_array_equal(scaled[1][:, 2], 0.0)
    within = np.sqrt((40 * y[0].var(axis=0) + 30 * y[1].var(axis=0)) / 70)
    np.testing.assert_allclose(scale.std, within)
    np.testing.assert_allclose(targets.back(np.zeros((1, 6)), scale)[0], np.concatenate(y).mean(0))


def test_axes_are_those_of_the_singular_values():
    scaled = np.concatenate(targets.per_slide(Y)[0])
    axes = targets.principal_axes(scaled, 3)
    wanted = np.linalg.svd(scaled)[2][:3].T
    np.testing.assert_allclose(np.abs(np.sum(axes * wanted, axis=0)), 1.0)


def test_a_reduced_regressor_predicts_the_projection():
    x = RNG.normal(size=(70, 4))
    scaled, scale = targets.per_slide(Y)
    choice = regressors.Choice(1.0, np.nan, 0.0)
    whole = regressors.fit("ridge", x, np.concatenate(scaled), choice)
    axes = targets.principal_axes(np.concatenate(scaled), 2)
    found = targets.regressor_back(targets.reduced(whole, axes), scale)
    wanted = targets.back(regressors.predict(whole, x) @ axes @ axes.T, scale)
    np.testing.assert_allclose(regressors.predict(found, x), wanted, atol=1e-5)
    assert np.linalg.matrix_rank(found.weights, tol=1e-4) == 2


def test_leading_axes_are_as_few_as_make_up_a_share_of_the_variance():
    """Variances 6, 3 and 1 along axes that are turned."""
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    fitted = (corners * np.sqrt([6.0, 3.0, 1.0])) @ turn.T
    for share, number in ((0.5, 1), (0.59, 1), (0.61, 2), (0.89, 2), (0.91, 3)):
        axes = targets.leading_axes(fitted, share)
        assert axes.shape == (3, number)
        np.testing.assert_allclose(np.abs(axes.T @ turn[:, :number]), np.eye(number), atol=1e-9)
    assert targets.leading_axes(np.zeros((4, 3)), 0.5).shape == (3, 3)
