"""Attention over a table and over an edge list against each other and against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.ops.attention import attend
from stfm_jax.ops.tiles import Edges

T, R, K, H, C = 7, 11, 5, 3, 4  # receivers, rows, columns of the table, heads, width
FORMS = ["table", "list"]
DEGREES = np.array([5, 3, 0, 1, 5, 4, 2])  # the third receiver has no edges


@pytest.fixture
def problem():
    """Table edges with padding, and what is summed over them, float64."""
    rng = np.random.default_rng(0)
    edges = Edges(
        senders=rng.integers(0, R, (T, K)).astype(np.int32),
        receivers=np.arange(T, dtype=np.int32)[:, None],
        mask=rng.permuted(np.arange(K) < DEGREES[:, None], axis=1),
    )
    inputs = (
        rng.normal(0.0, 3.0, (T, K, H)),
        rng.normal(size=(R, H, C)),
        rng.normal(size=(T, K, H, C)),
    )
    return inputs, edges


def run(form, inputs, edges):
    """`attend` of a problem in table form, done in either form."""
    logits, values, edge_values = inputs
    if form == "list":
        receivers = jnp.broadcast_to(edges.receivers, edges.mask.shape)
        edges = Edges(*(a.reshape(-1) for a in (edges.senders, receivers, edges.mask)))
        logits, edge_values = (a.reshape(-1, *a.shape[2:]) for a in (logits, edge_values))
    return attend(logits, values, edge_values, edges, T)


def by_loops(inputs, edges):
    logits, values, edge_values = inputs
    sums = np.zeros((2, T, H, C))
    for i in range(T):
        columns = np.flatnonzero(edges.mask[i])
        for h in range(H):
            if len(columns):
                weights = np.exp(logits[i, columns, h] - logits[i, columns, h].max())
                weights /= weights.sum()
                sums[0, i, h] = weights @ values[edges.senders[i, columns], h]
                sums[1, i, h] = weights @ edge_values[i, columns, h]
    return sums


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
def loss_of(form, inputs, edges):
    sums = run(form, inputs, edges)
    return jnp.sum(jnp.sin(sums[0])) + jnp.sum(jnp.cos(sums[1])), sums


def value_and_gradients(form, inputs, edges):
    with jax.enable_x64(True):
        (_, sums), gradients = loss_of(form, inputs, edges)
    return np.stack(sums), [np.asarray(g) for g in gradients]


@pytest.mark.parametrize("form", FORMS)
def test_equals_loops(problem, form):
    inputs, edges = problem
    sums, _ = value_and_gradients(form, inputs, edges)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, by_loops(inputs, edges), atol=1e-13)
    np.testing.assert_array_equal(sums[:, DEGREES == 0], 0.0)


def test_forms_have_the_same_gradients(problem):
    inputs, edges = problem
    table, listed = (value_and_gradients(form, inputs, edges) for form in FORMS)
    np.testing.assert_allclose(table[0], listed[0], atol=1e-13)
    for a, b in zip(table[1], listed[1], strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0.1
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_those_of_the_loops(problem, form):
    """Along random directions, by central differences of the loops."""
    inputs, edges = problem
    _, gradients = value_and_gradients(form, inputs, edges)

    def loss(inputs):
        sums = by_loops(inputs, edges)
        return np.sin(sums[0]).sum() + np.cos(sums[1]).sum()

    rng = np.random.default_rng(1)
    for which in range(3):
        direction = rng.normal(size=inputs[which].shape)

        def at(step, which=which, direction=direction):
            moved = list(inputs)
            moved[which] = moved[which] + step * direction
            return loss(moved)

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        np.testing.assert_allclose((gradients[which] * direction).sum(), slope, rtol=1e-7)


@pytest.mark.parametrize("wrong", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_what_would_broadcast_is_refused(problem, form, wrong):
    """One head's logits or edge values for all heads."""
    inputs, edges = problem
    inputs = [a[:, :, :1] if i == wrong else a for i, a in enumerate(inputs)]
    with pytest.raises(AssertionError, match="shape"):
        run(form, inputs, edges)


@pytest.mark.parametrize("garbage", [0.0, 1e4, -1e30, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("form", FORMS)
def test_masked_edges_do_not_matter(problem, form, garbage):
    """Whatever their logits, values and senders: neither to the sums nor to the gradients."""
    (logits, values, edge_values), edges = problem
    mask = edges.mask[..., None]
    other = (
        np.where(mask, logits, garbage),
        values,
        np.where(mask[..., None], edge_values, 1e3),
    )
    expected = value_and_gradients(form, (logits, values, edge_values), edges)
    senders = np.where(edges.mask, edges.senders, R - 1).astype(np.int32)
    sums, gradients = value_and_gradients(form, other, edges._replace(senders=senders))
    np.testing.assert_array_equal(sums, expected[0])
    for a, b in zip(gradients, expected[1], strict=True):
        np.testing.assert_array_equal(a, b)
    for by_edge in (gradients[0], gradients[2]):
        np.testing.assert_array_equal(by_edge[~edges.mask], 0.0)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@pytest.mark.parametrize("form", FORMS)
def test_large_logits_are_survived_in_float32(problem, form, shift):
    """Rounded to what float32 holds next to the shift."""
    (logits, *rest), edges = problem
    inputs = (np.round(8 * logits) / 8, *rest)
    single = [a.astype(np.float32) for a in inputs]
    single[0] = single[0] + np.float32(shift)
    sums = np.stack(loss_of(form, tuple(single), edges)[0][1])
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, by_loops(inputs, edges), atol=1e-5)
