"""Chunks driven from the host against the network in one call, and no trace per slide."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
import tiny

from stfm_jax.data.batching import PreparedSlide, collate, in_order
from stfm_jax.flow import gaussian, priors
from stfm_jax.models.stflow import whole_slide
from stfm_jax.models.stflow.flow import FlowArrays
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.models.stflow.whole_slide import Rows

F, G, TILE, CHUNK = 12, 5, 32, 64


def made(n, seed=0):
    rng = np.random.default_rng(seed)
    return PreparedSlide(
        name="slide",
        coords=rng.uniform(size=(n, 2)) * np.sqrt(n),
        features=rng.normal(size=(n, F)).astype(np.float32),
        anchor=rng.normal(size=(n, G)).astype(np.float32) + 1.0,
        expr=None,
        place=np.arange(n, dtype=np.int32),
    )


def method(**overrides):
    flow = STFlowSettings.of(tiny.config(**overrides)).flow(G)
    network = dataclasses.replace(flow.network, zero_init=False)
    flow = dataclasses.replace(flow, network=network, tile=TILE)
    prior = priors.zinb_prior(np.full(G, 3.0), np.ones(G), -np.ones(G))
    path = gaussian.gaussian_path(prior.mean, prior.covariance, np.eye(G))
    arrays = FlowArrays(prior, path, np.zeros(G, np.float32), np.ones(G, np.float32))
    return flow, jax.jit(flow.init, static_argnums=2)(jax.random.key(0), arrays, F), arrays


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"model__anchor": "none"}, marks=pytest.mark.slow),
        {"model__expression": "differences", "model__frames": "pca"},
    ],
)
def test_equals_one_call(overrides, cache_bytes):
    """Mean and draws, in the order of the input, whether edge features are kept or not."""
    flow, params, arrays = method(**overrides)
    slide, key = made(230), jax.random.key(3)
    batch = collate([slide], flow.neighbors, TILE)
    whole = whole_slide.encode(flow, params, arrays, Rows.of(slide), CHUNK, cache_bytes)
    assert (whole.features is None) == (cache_bytes == 0)
    assert len(whole.chunks) == 4
    mean = whole_slide.posterior_mean(flow, params, arrays, whole, key, 2)
    expected = in_order(batch, flow.posterior_mean(params, arrays, batch, key, 2))
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    drawn = np.stack(list(whole_slide.sample(flow, params, arrays, whole, key, 2)))
    expected = in_order(batch, flow.sample(params, arrays, batch, key, 2))
    assert expected.std() > 0.3
    np.testing.assert_allclose(drawn, expected, atol=2e-5)


def test_a_larger_slide_compiles_nothing_heavy_anew():
    flow, params, arrays = method()
    key = jax.random.key(0)

    def run(n):
        slide = whole_slide.encode(flow, params, arrays, Rows.of(made(n, seed=n)), CHUNK, 0)
        return list(whole_slide.sample(flow, params, arrays, slide, key, 1))

    run(200)
    traces = whole_slide._run_tiles._cache_size()
    shapes = [
        whole_slide.encode(flow, params, arrays, Rows.of(made(n, n)), CHUNK, 0).chunks[0].halo.shape
        for n in (200, 500)
    ]
    assert shapes[0] == shapes[1]
    run(500)
    assert whole_slide._run_tiles._cache_size() == traces


def test_progress_counts_every_row_of_every_layer():
    flow, params, arrays = method()
    slide = whole_slide.encode(flow, params, arrays, Rows.of(made(150)), CHUNK)
    done = []
    list(whole_slide.sample(flow, params, arrays, slide, jax.random.key(0), 2, done.append))
    assert sum(done) == 2 * flow.evaluations * flow.network.num_blocks * len(slide.place)


def test_the_log_says_the_form(caplog):
    flow, params, arrays = method()
    with caplog.at_level(logging.INFO, "stfm_jax"):
        whole_slide.encode(flow, params, arrays, Rows.of(made(150)), CHUNK, 0)
    assert "150 spots in tiles of 32, 2 at a time" in caplog.text
    assert "slide: neighbours of 150 spots: 0 s" in caplog.text
    assert "slide: features, neighbourhoods and anchor of 150 spots: " in caplog.text
    assert "computed at every evaluation" in caplog.text
