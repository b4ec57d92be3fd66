"""Trivial splits: their mass, and where they are exact."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from lattices import STEPS, points

from stfm_jax.data import coarsen
from stfm_jax.data.slide import Slide
from stfm_jax.models import parts, table
from stfm_jax.models.method import Genes, NotApplicable, Request
from stfm_jax.ops import simplex
from stfm_jax.settings import Settings

SPLITS = [
    name for name in table.METHODS if issubclass(table.method_class(name), parts.Proportional)
]


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


def split_by(name, pair):
    """Real counts [n, g] of the children."""
    method = table.method_class(name)(Settings())
    request = Request(Genes(tuple(pair.low.genes), ()), seed=0, draws=3, mean_draws=0, mesh=None)
    out = np.zeros((pair.high.num_spots, len(pair.low.genes)))
    for part in method.predict(method.fit([], {}, None), pair, request):
        assert part.draws.shape == (0, *part.mean.shape)  # it has none
        mask = part.children >= 0
        gene = np.repeat(part.pairs.gene, mask.sum(axis=1))
        out[part.children[mask], gene] = simplex.split(part.counts, part.mean, mask)[mask]
    return out


@pytest.mark.parametrize("kind", STEPS)
def test_mass_is_kept(kind):
    pair, _ = pair_of(kind, lost=0.2)
    parents = pair.low.counts.toarray()
    assert SPLITS == ["uniform", "bilinear", "bicubic", "gaussian"]
    for name in SPLITS:
        found = split_by(name, pair)
        summed = np.zeros(parents.shape)
        np.add.at(summed, pair.parent, found)
        np.testing.assert_allclose(summed, parents, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(found[:, 2], 50.0, err_msg=name)  # of a flat field


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", STEPS)
def test_interpolation_finds_a_plane_again(kind, name):
    """Away from the edge, where there is nothing to interpolate between."""
    pair, counts = pair_of(kind, lost=0.0)
    off = np.abs(split_by(name, pair) - counts).max(axis=1)
    centre = np.median(pair.high.coords_um, axis=0)
    inner = np.abs((pair.high.coords_um - centre) @ np.linalg.inv(STEPS[kind])).max(axis=1) < 3.6
    assert inner.sum() > 40
    assert off[inner].max() < (1e-4 if name == "bilinear" else 0.3)
    assert off.max() > 0.5
    assert np.abs(split_by("uniform", pair) - counts)[inner].max() > 1.4


def test_the_gaussian_leans_toward_fuller_neighbours():
    pair, counts = pair_of("square", lost=0.0)
    error = {name: np.abs(split_by(name, pair) - counts).mean() for name in SPLITS}
    assert error["bilinear"] < error["gaussian"] < 0.8 * error["uniform"]


@pytest.mark.parametrize("name", SPLITS)
def test_a_few_genes_at_a_time_are_all_at_once(name, monkeypatch):
    pair, _ = pair_of("square", lost=0.2)
    expected = split_by(name, pair)
    monkeypatch.setattr(parts, "NUMBERS_AT_ONCE", 2 * pair.high.num_spots)
    np.testing.assert_allclose(split_by(name, pair), expected, rtol=1e-12)


def test_interpolation_needs_a_lattice():
    pair, _ = pair_of("square", lost=0.0)
    off = pair.low.coords_um + np.random.default_rng(0).normal(0, 100.0, pair.low.coords_um.shape)
    pair = dataclasses.replace(pair, low=dataclasses.replace(pair.low, coords_um=off))
    for name in ("bilinear", "bicubic"):
        with pytest.raises(NotApplicable, match="lattice"):
            split_by(name, pair)
    for name in ("uniform", "gaussian"):
        assert (split_by(name, pair) > 0).all()
