"""Linear attention against its quadratic form, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.ops.linear_attention import linear_attention
from stfm_jax.ops.tiles import AXIS
from stfm_jax.runtime.devices import SHARDED, make_mesh, shard

N, H, D, C = 24, 3, 5, 4  # rows, heads, width of the weights and of the values
GROUPS = 4  # the third has no rows, the last has masked rows alone
DEVICES = 4


@pytest.fixture
def problem():
    """q, k, v in float64; mask; group. Rows of a group do not follow one another."""
    rng = np.random.default_rng(0)
    inputs = tuple(rng.normal(0.0, 2.0, (N, H, width)) for width in (D, D, C))
    group = rng.permutation(np.repeat([0, 1, 3], N // 3)).astype(np.int32)
    return inputs, (rng.uniform(size=N) < 0.7) & (group != 3), group


def phi(x):
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))


def quadratic(inputs, mask, group):
    """By the n x n matrix of every head; zeros for masked rows."""
    q, k, v = (np.asarray(a, np.float64) for a in inputs)
    seen = mask[:, None] & mask & (group[:, None] == group)
    out = np.zeros(v.shape)
    for h in range(v.shape[1]):
        weights = np.where(seen, phi(q[:, h]) @ phi(k[:, h]).T, 0.0)
        total = weights.sum(axis=1, keepdims=True)
        out[:, h] = weights / np.where(total > 0, total, 1.0) @ v[:, h]
    return out


def single(inputs):
    return tuple(np.asarray(a, np.float32) for a in inputs)


@functools.partial(jax.jit, static_argnames="num_groups")
@functools.partial(jax.value_and_grad, has_aux=True)
def loss_of(inputs, mask, group, num_groups=GROUPS):
    out = linear_attention(*inputs, mask, group, num_groups)
    return jnp.sum(jnp.sin(out)), out


def value_and_gradients(inputs, mask, group):
    (_, out), gradients = loss_of(inputs, mask, group)
    return np.asarray(out), [np.asarray(g) for g in gradients]


def test_equals_the_quadratic_form(problem):
    inputs, mask, group = problem
    out, _ = value_and_gradients(single(inputs), mask, group)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, quadratic(inputs, mask, group), atol=1e-5)
    np.testing.assert_array_equal(out[~mask], 0.0)


def test_without_groups_all_rows_are_of_one(problem):
    inputs, mask, _ = problem
    out = jax.jit(linear_attention)(*single(inputs), mask)
    np.testing.assert_allclose(out, quadratic(inputs, mask, np.zeros(N)), atol=1e-5)


def test_gradients_equal_those_of_the_quadratic_form(problem):
    """Along random directions, by central differences."""
    inputs, mask, group = problem
    with jax.enable_x64(True):
        out, gradients = value_and_gradients(inputs, mask, group)
    np.testing.assert_allclose(out, quadratic(inputs, mask, group), atol=1e-13)
    rng = np.random.default_rng(1)
    for which in range(3):
        direction = rng.normal(size=inputs[which].shape)
        sides = []
        for step in (1e-5, -1e-5):
            moved = list(inputs)
            moved[which] = moved[which] + step * direction
            sides.append(np.sin(quadratic(moved, mask, group)).sum())
        slope = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose((gradients[which] * direction).sum(), slope, rtol=1e-6)


def test_what_would_broadcast_is_refused(problem):
    (q, k, v), mask, group = problem
    for wrong in ((q, k, v, mask[:1], group), (q, k[:, :1], v, mask, group), (q, k, v[:1], mask)):
        with pytest.raises(AssertionError, match="shape"):
            linear_attention(*wrong, num_groups=GROUPS)


@pytest.mark.parametrize("garbage", [1e4, -1e30, np.inf, np.nan])
def test_masked_rows_do_not_matter(problem, garbage):
    """Whatever they hold and whichever group they name: to the sums and to the gradients."""
    inputs, mask, group = problem
    expected = value_and_gradients(single(inputs), mask, group)
    other = [np.where(mask[:, None, None], a, garbage) for a in inputs]
    out, gradients = value_and_gradients(single(other), mask, np.where(mask, group, 0))
    np.testing.assert_array_equal(out, expected[0])
    for a, b in zip(gradients, expected[1], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[~mask], 0.0)
        assert np.isfinite(a).all() and np.abs(a).max() > 0.01


def test_padding_changes_nothing(problem):
    inputs, mask, group = problem

    def padded(a):
        return np.concatenate([a, np.zeros((8, *a.shape[1:]), a.dtype)])

    expected = value_and_gradients(single(inputs), mask, group)
    out, gradients = value_and_gradients(
        tuple(map(padded, single(inputs))), padded(mask), padded(group)
    )
    np.testing.assert_allclose(out[:N], expected[0], atol=1e-6)
    for a, b in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(a[:N], b, atol=1e-6)


def test_rows_may_come_in_any_order(problem):
    inputs, mask, group = problem
    order = np.random.default_rng(2).permutation(N)
    expected, _ = value_and_gradients(single(inputs), mask, group)
    moved = tuple(a[order] for a in single(inputs))
    out, _ = value_and_gradients(moved, mask[order], group[order])
    np.testing.assert_allclose(out, expected[order], atol=1e-6)


def test_nothing_to_look_at(problem):
    """No unmasked row at all."""
    inputs, mask, group = problem
    out, gradients = value_and_gradients(single(inputs), np.zeros_like(mask), group)
    for a in (out, *gradients):
        np.testing.assert_array_equal(a, 0.0)


@pytest.mark.parametrize("shift", [(0.0, -20.0), (-20.0, 0.0), (1e4, 1e4)])
def test_weights_far_from_one(problem, shift):
    """`exp(x) - 1 + 1` would have no digits left at -20."""
    (q, k, v), mask, group = problem
    inputs = single((q + shift[0], k + shift[1], v))
    out, gradients = value_and_gradients(inputs, mask, group)
    np.testing.assert_allclose(out, quadratic(inputs, mask, group), atol=1e-5)
    assert all(np.isfinite(a).all() for a in gradients)


@pytest.mark.parametrize("shift", [-30.0, -60.0, -200.0])
def test_weights_that_vanish_are_survived(problem, shift):
    (q, k, v), mask, group = problem
    out, gradients = value_and_gradients(single((q + shift, k + shift, v)), mask, group)
    assert np.abs(out).max() <= np.abs(v).max()
    assert all(np.isfinite(a).all() for a in gradients)


def largest(jaxpr):
    """Elements of the largest array in a program."""
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
    values = (v for e in jaxpr.eqns for v in e.params.values())
    inner = (getattr(v, "jaxpr", v) for v in values)
    return max([0, *sizes, *(largest(j) for j in inner if hasattr(j, "eqns"))])


def test_no_array_is_larger_than_the_values():
    """Neither n x n, nor a matrix for every row, nor rows for every group; backwards too."""
    n, d = 5000, 16
    rows, labels = np.zeros((n, H, d), np.float32), np.zeros(n, np.int32)
    backward = functools.partial(loss_of, num_groups=GROUPS)
    program = jax.make_jaxpr(backward)((rows, rows, rows), labels == 0, labels)
    assert n * H * d <= largest(program.jaxpr) <= n * H * (d + 1)


def on_devices(inputs, mask, group):
    """Values and gradients as training takes them: the devices' losses add up."""

    def on_device(inputs, mask, group):
        def loss(inputs):
            out = linear_attention(*inputs, mask, group, GROUPS, axis=AXIS)
            return jnp.sum(jnp.sin(out)), out

        (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
        return out, gradients

    mesh = make_mesh(DEVICES)
    shared = jax.shard_map(
        on_device, mesh=mesh, in_specs=SHARDED, out_specs=SHARDED, check_vma=False
    )
    out, gradients = jax.jit(shared)(*shard(mesh, (inputs, mask, group)))
    assert len(out.sharding.device_set) == DEVICES
    return np.asarray(out), [np.asarray(g) for g in gradients]


def test_several_devices_are_one(problem):
    """Groups lie across devices; the first device has masked rows alone."""
    inputs, mask, group = problem
    mask = mask & (np.arange(N) >= N // DEVICES)
    expected = value_and_gradients(single(inputs), mask, group)
    out, gradients = on_devices(single(inputs), mask, group)
    np.testing.assert_allclose(out, expected[0], atol=1e-5)
    np.testing.assert_allclose(out, quadratic(inputs, mask, group), atol=1e-5)
    for a, b in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(b).max() > 0.01
