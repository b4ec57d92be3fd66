"""Sparse interpolation from parents to children: constants, planes, and what is around."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from stfm_jax.data import interpolation
from stfm_jax.errors import InputError

LOW = np.argwhere(np.ones((6, 5))) * 100.0
OFFSETS = np.array([(-25.0, -25.0), (-25.0, 25.0), (25.0, -25.0), (25.0, 25.0)])
HIGH = (LOW[:, None] + OFFSETS).reshape(-1, 2)
PARENT = np.repeat(np.arange(len(LOW)), 4)


def test_rows_sum_to_one():
    for matrix in (
        interpolation.gaussian(LOW, HIGH, PARENT, 75.0),
        interpolation.bilinear(LOW, HIGH, "slide"),
    ):
        assert matrix.shape == (len(HIGH), len(LOW))
        np.testing.assert_allclose(matrix.sum(axis=1).A1, 1.0)


def test_bilinear_is_that_of_scipy():
    rng = np.random.default_rng(0)
    field = rng.normal(size=(6, 5))
    at = HIGH.T / 100.0
    expected = ndimage.map_coordinates(field, at, order=1, mode="nearest")
    found = interpolation.bilinear(LOW, HIGH, "slide") @ field.ravel()
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_gaussian_of_tissue_with_a_hole_sees_what_is_there():
    there = np.arange(len(LOW)) != 12
    low, keep = LOW[there], np.repeat(there, 4)
    parent = np.repeat(np.arange(len(low)), 4)
    matrix = interpolation.gaussian(low, HIGH[keep], parent, 75.0)
    np.testing.assert_allclose(matrix @ np.ones(len(low)), 1.0)


def test_parents_on_no_lattice_are_refused():
    low = np.random.default_rng(0).uniform(0, 600, (30, 2))
    with pytest.raises(InputError, match="lie on no lattice that is square, hexagonal"):
        interpolation.bilinear(low, HIGH, "slide 'x'")


def test_weights_are_those_of_a_gaussian_and_of_numbers_of_children():
    """Three parents at 0, 100 and 300 um with 1, 2 and 1 children; seen from 0."""
    low = np.array([[0.0, 0.0], [100.0, 0.0], [300.0, 0.0]])
    parent = np.array([0, 1, 1, 2])
    found = interpolation.gaussian(low, low[parent], parent, 75.0, spread_um2=625.0)
    weights = np.exp(-(np.array([0.0, 100.0, 300.0]) ** 2) / (2 * (75.0**2 + 625.0))) * [1, 2, 1]
    weights[2] *= 300.0 <= interpolation._REACH * np.hypot(75.0, 25.0)
    np.testing.assert_allclose(found.toarray()[0], weights / weights.sum(), rtol=1e-9)


def test_the_lattice_may_lie_anywhere():
    """Far from the origin, and the children in other places: the same planes and splines."""
    rng = np.random.default_rng(3)
    moved = np.array([5000.0, -1230.0])
    field = rng.normal(size=(len(LOW), 2))
    plane = LOW @ [[0.3], [-0.7]] + 4.0
    inside = (HIGH > 0).all(axis=1) & (HIGH < LOW.max(axis=0)).all(axis=1)
    found = interpolation.bilinear(LOW + moved, HIGH + moved, "slide") @ plane
    np.testing.assert_allclose(found[inside], (HIGH @ [[0.3], [-0.7]] + 4.0)[inside])
    here, there = (
        interpolation.bicubic(field, LOW + shift, HIGH + shift, "slide") for shift in (0.0, moved)
    )
    np.testing.assert_allclose(here, there, atol=1e-6)
    np.testing.assert_allclose(interpolation.bicubic(field, LOW + moved, LOW + moved, ""), field)
