"""Lattices of whole slides, where a guess from a few neighbours would be off by spots."""

import numpy as np
import pytest

from stfm_jax.data.lattice import find_lattice, spot_spacing_um
from stfm_jax.errors import InputError

CELLS = {
    "rectangles": [[100.0, 0.0], [0.0, 140.0]],
    "centred rectangles": [[43.0, 24.0], [43.0, -24.0]],
    "squares": [[100.0, 0.0], [0.0, 100.0]],
    "hexagons": [[100.0, 0.0], [50.0, 75.0**0.5 * 10.0]],
}


def turned(points, degrees):
    a = np.deg2rad(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize("cell", CELLS)
def test_a_large_lattice_is_found_from_places_that_are_a_little_off(cell, degrees):
    """6,400 spots, each off by up to a twentieth of a step; then neighbours are neighbours."""
    steps, side = np.array(CELLS[cell]), 80
    index = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    off = 0.05 * np.linalg.norm(steps[0]) * rng.uniform(-1, 1, index.shape)
    _, found = find_lattice(turned(index @ steps, degrees) + off, "slide")
    # The lattice has steps of its own: what it says is an invertible linear map of the truth.
    design = np.column_stack([index, np.ones(len(index))])
    fit = np.linalg.lstsq(design, found, rcond=None)[0]
    np.testing.assert_allclose(design @ fit, found, atol=1e-6)
    np.testing.assert_allclose(np.round(fit[:2]), fit[:2], atol=1e-6)
    assert abs(np.linalg.det(fit[:2])) == pytest.approx(1.0)


def test_a_skewed_lattice_is_none_that_platforms_have():
    index = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2)
    with pytest.raises(InputError, match="slide"):
        find_lattice(index @ np.array([[100.0, 0.0], [27.0, 130.0]]), "slide")


def test_few_spots_have_a_distance():
    """Of one spot any will do; the others are 70 um from the next."""
    corner = 70.0 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    triangle = 70.0 * np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    assert spot_spacing_um(corner[:1]) == 1.0
    for spots in (corner[:2], triangle, corner):
        assert spot_spacing_um(spots) == pytest.approx(70.0)
