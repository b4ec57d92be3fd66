"""Segment reductions against loops over receivers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.ops.segment import segment_softmax, segment_sum

NUM_SEGMENTS = 7
softmax = jax.jit(segment_softmax, static_argnums=2)


@pytest.fixture
def edges():
    """Receivers of unequal degree; 0 and 4 have no edge, all of 5's edges are masked."""
    receivers = np.array([1, 1, 1, 2, 3, 3, 3, 3, 5, 5, 6, 6], np.int32)
    mask = np.array([1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1], bool)
    logits = np.random.default_rng(0).normal(0.0, 3.0, (12, 4)).astype(np.float32)
    return logits, receivers, mask


def softmax_by_loop(logits, receivers, mask):
    out = np.zeros_like(logits, dtype=np.float64)
    for i in range(NUM_SEGMENTS):
        mine = (receivers == i) & mask
        if mine.any():
            weights = np.exp(logits[mine].astype(np.float64) - logits[mine].max(axis=0))
            out[mine] = weights / weights.sum(axis=0)
    return out


def test_softmax_equals_loop(edges):
    logits, receivers, mask = edges
    weights = softmax(logits, receivers, NUM_SEGMENTS, mask)
    expected = softmax_by_loop(logits, receivers, mask)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    total = segment_sum(weights, receivers, NUM_SEGMENTS)[:, 0]
    np.testing.assert_allclose(total, [0, 1, 1, 1, 0, 0, 1], atol=1e-6)


def test_sum_equals_loop(edges):
    logits, receivers, _ = edges
    expected = [logits[receivers == i].sum(axis=0) for i in range(NUM_SEGMENTS)]
    total = segment_sum(logits, receivers, NUM_SEGMENTS)
    np.testing.assert_allclose(total, expected, atol=1e-5)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_softmax_survives_large_logits(edges, shift):
    logits, receivers, mask = edges
    logits = np.round(logits, 2).astype(np.float32)
    weights = softmax(logits + np.float32(shift), receivers, NUM_SEGMENTS, mask)
    np.testing.assert_allclose(weights, softmax_by_loop(logits, receivers, mask), atol=2e-3)


@pytest.mark.parametrize("padding", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_logits_do_not_matter(edges, padding):
    logits, receivers, mask = edges
    garbage = np.where(mask[:, None], logits, np.float32(padding))
    weights = softmax(garbage, receivers, NUM_SEGMENTS, mask)
    np.testing.assert_array_equal(weights, softmax(logits, receivers, NUM_SEGMENTS, mask))


def test_gradients_are_finite_and_right(edges):
    """Also through receivers without edges and receivers whose edges are all masked."""
    logits, receivers, mask = edges
    values = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)

    @jax.jit
    def scalar(logits):
        weights = segment_softmax(logits, receivers, NUM_SEGMENTS, mask)
        return jnp.sum(segment_sum(weights * values, receivers, NUM_SEGMENTS) ** 2)

    gradient = np.asarray(jax.grad(scalar)(logits))
    assert np.isfinite(gradient).all() and (gradient[~mask] == 0).all()
    assert np.abs(gradient[mask & (receivers != 2)]).min() > 0
    # Softmax: dL/dlogit = w (dL/dw - sum_w' w' dL/dw').
    weights = softmax_by_loop(logits, receivers, mask)
    total = np.stack([(weights * values)[receivers == i].sum(axis=0) for i in range(7)])
    upstream = 2 * total[receivers] * values
    centre = np.stack([(weights * upstream)[receivers == i].sum(axis=0) for i in range(7)])
    np.testing.assert_allclose(gradient, weights * (upstream - centre[receivers]), atol=1e-5)
