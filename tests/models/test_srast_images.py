"""What children's images say: found on a sample of other genes, without its children's counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data.coarsen import Pair, by_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.models.srast import images as split_images
from stfm_jax.models.srast import latents
from stfm_jax.models.srast.flow import Fitted, SplitArrays
from stfm_jax.models.srast.images import ImageReader
from stfm_jax.models.srast.method import SRastMethod, SRastSettings, State

READER = ImageReader(components=20, context=(9,))
GENES, WIDTH = 24, 40
rng = np.random.default_rng(0)
AXES = rng.normal(size=(3, WIDTH))  # of the features, along which tissue differs


def tissue(seed: int) -> tuple[Slide, np.ndarray]:
    """Spots of their own kind each, seen amid louder features that mean nothing; their rates."""
    rng = np.random.default_rng(seed)
    at = np.argwhere(np.ones((24, 24)))
    kind, noise = rng.normal(size=(len(at), 2)), rng.normal(size=(len(at), 8))
    depth = rng.normal(0, 0.5, len(at))
    features = np.column_stack([kind, depth]) @ AXES
    features += 1.5 * noise @ np.random.default_rng(99).normal(size=(8, WIDTH))
    rates = np.exp(kind @ rng.normal(0, 0.6, (2, GENES)))  # the genes are this sample's own
    counts = rng.poisson(20.0 * rates * np.exp(depth)[:, None])
    slide = Slide(
        name=f"s{seed}",
        barcodes=np.array([f"{i}x{j}" for i, j in at]),
        coords_um=at * 100.0,
        counts=sp.csr_matrix(counts.astype(np.float32)),
        genes=np.array([f"s{seed}_g{i}" for i in range(GENES)]),
        features=features.astype(np.float32),
    )
    return slide, rates


def within_parents(pair: Pair, values: np.ndarray) -> np.ndarray:
    """Values [n, k] about the mean of the siblings."""
    return values - pair.mean_of_children(values)[pair.parent]


@pytest.fixture(scope="module")
def training():
    pairs = [by_lattice(tissue(seed)[0]) for seed in (1, 2)]
    return pairs, [latents.fit(pair.low) for pair in pairs]


@pytest.fixture(scope="module")
def fitted(training):
    return split_images.fit(READER, *training)


def test_depth_and_rates_of_a_sample_of_other_genes(fitted):
    slide, rates = tissue(3)
    pair = by_lattice(slide)
    blind = Pair(pair.low, dataclasses.replace(slide, counts=None, genes=None), pair.parent)
    said = split_images.of_sample(READER, fitted[0], blind, latents.fit(pair.low))
    every = np.arange(slide.num_spots)
    found = within_parents(pair, np.log(said.rates(every, np.arange(GENES))))
    true = within_parents(pair, np.log(rates))
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.6
    depth = np.log(slide.counts.sum(axis=1).A1 / (rates.sum(axis=1)))
    assert np.corrcoef(said.depth, depth)[0, 1] > 0.6


def test_what_it_holds_of_single_children_is_declared(training, fitted):
    arrays = SplitArrays(*[None] * 4)
    state = State(Fitted(arrays, fitted[0]), {}, 1)
    children = len(fitted[0].depth.landmarks)
    assert children == sum(pair.high.num_spots for pair in training[0])
    held = SRastMethod(SRastSettings(image=True)).individual_data(state)
    assert set(held) == {"fitted/images/depth/landmarks", "fitted/images/depth/weights"}
    assert str(children) in held["fitted/images/depth/landmarks"]


def test_axes_leave_out_what_expression_does_not_follow(fitted):
    """Features that mean nothing are louder in the images, and softer in the looks."""
    images, _ = fitted
    slide, _ = tissue(4)
    own = slide.features @ images.transform.components
    log_counts = np.log1p(slide.counts.toarray())
    hidden = np.column_stack([np.ones(len(own)), log_counts])

    def share_explained(x):
        x = x - x.mean(axis=0)
        left = x - hidden @ np.linalg.lstsq(hidden, x)[0]
        return 1.0 - (left**2).sum() / (x**2).sum()

    assert share_explained(own @ images.axes) > 0.6 > 2 * share_explained(own)


def test_some_children(fitted):
    said = fitted[1][0]
    index = np.array([5, 2, 9])
    some = said.of_children(index)
    genes = np.array([1, 3])
    np.testing.assert_array_equal(some.depth, said.depth[index])
    expected = said.rates(index, genes)
    np.testing.assert_allclose(some.rates(np.arange(3), genes), expected, rtol=1e-4)


def test_a_training_sample_is_told_by_the_others(training, fitted):
    """Its own children's counts do not show in what is said of it, but through the features."""
    pairs, models = training
    rng = np.random.default_rng(5)
    high = pairs[0].high
    mixed = high.counts[rng.permutation(high.num_spots)]
    pair = by_lattice(dataclasses.replace(high, counts=mixed))
    _, said = split_images.fit(READER, [pair, pairs[1]], models)
    np.testing.assert_allclose(said[0].looks, fitted[1][0].looks, rtol=1e-3, atol=1e-4)


def test_a_single_training_sample(training):
    pairs, models = training
    images, said = split_images.fit(READER, pairs[:1], models[:1])
    assert len(said) == 1 and np.isfinite(said[0].depth).all()
    assert images.axes.shape[1] <= split_images.AXES
