"""Trivial splits: their mass, and where they are exact."""

import numpy as np
import pytest
import scipy.sparse as sp
from lattices import STEPS, points

from stfm_jax.data import coarsen
from stfm_jax.data.slide import Slide
from stfm_jax.models.baselines import splits


def pair_of(kind, lost, side=16):
    rng = np.random.default_rng(0)
    index = points(side, lost, rng)
    slope = np.array([[2.0, 0.0], [1.0, 3.0], [0.0, 0.0]])  # of three genes, along the steps
    counts = 50.0 + index @ slope.T
    slide = Slide(
        name="S",
        barcodes=np.arange(len(index)).astype(str),
        coords_um=index @ STEPS[kind],
        counts=sp.csr_matrix(counts.astype(np.float32)),
        genes=np.array(["a", "b", "c"]),
    )
    return coarsen.by_lattice(slide, "2x2"), counts


@pytest.mark.parametrize("kind", STEPS)
def test_mass_is_kept(kind):
    pair, _ = pair_of(kind, lost=0.2)
    parents = pair.low.counts.toarray()
    found = splits.predictions(pair, parents)
    assert tuple(found) == splits.ROWS
    for name, parts in found.items():
        summed = np.zeros(parents.shape)
        np.add.at(summed, pair.parent, parts)
        np.testing.assert_allclose(summed, parents, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(parts[:, 2], 50.0, err_msg=name)  # of a flat field


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", STEPS)
def test_interpolation_finds_a_plane_again(kind, name):
    """Away from the edge, where there is nothing to interpolate between."""
    pair, counts = pair_of(kind, lost=0.0)
    parts = splits.predictions(pair, pair.low.counts.toarray())[name]
    off = np.abs(parts - counts).max(axis=1)
    centre = np.median(pair.high.coords_um, axis=0)
    inner = np.abs((pair.high.coords_um - centre) @ np.linalg.inv(STEPS[kind])).max(axis=1) < 3.6
    assert inner.sum() > 40
    assert off[inner].max() < (1e-4 if name == "bilinear" else 0.3)
    assert off.max() > 0.5
    uniform = splits.predictions(pair, pair.low.counts.toarray())["uniform"]
    assert np.abs(uniform - counts)[inner].max() > 1.4


def test_the_gaussian_leans_toward_fuller_neighbours():
    pair, counts = pair_of("square", lost=0.0)
    parts = splits.predictions(pair, pair.low.counts.toarray())
    error = {name: np.abs(value - counts).mean() for name, value in parts.items()}
    assert error["bilinear"] < error["gaussian"] < 0.8 * error["uniform"]
