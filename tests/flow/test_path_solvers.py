"""The straight path, its velocity, the time grids and Euler's method on fields solved by hand."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfm_jax.flow.path import angular_times, interpolate, uniform_times, velocity
from stfm_jax.flow.solvers import euler, host_scan


def draws(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)


def test_ends_of_the_path():
    x_0, x_1 = draws()
    np.testing.assert_array_equal(interpolate(x_0, x_1, 0.0), x_0)
    np.testing.assert_array_equal(interpolate(x_0, x_1, 1.0), x_1)


@given(t=st.floats(0.0, 0.95))
@settings(max_examples=20, deadline=None)
def test_velocity_of_the_true_data_is_x_1_minus_x_0(t):
    x_0, x_1 = draws()
    x_t = interpolate(x_0, x_1, np.float32(t))
    np.testing.assert_allclose(velocity(x_1, x_t, np.float32(t)), x_1 - x_0, atol=2e-5)


def test_time_per_spot_broadcasts():
    x_0, x_1 = draws()
    t = np.linspace(0.0, 0.9, 20, dtype=np.float32)[:, None]
    rows = [interpolate(x_0[i], x_1[i], t[i, 0]) for i in range(20)]
    np.testing.assert_allclose(interpolate(x_0, x_1, t), np.stack(rows), rtol=1e-6)


@pytest.mark.parametrize("evaluations", [1, 2, 5, 17])
def test_time_grids(evaluations):
    for times in (uniform_times(evaluations), angular_times(evaluations)):
        assert times.shape == (evaluations + 1,)
        np.testing.assert_allclose(times[jnp.array([0, -1])], [0.0, 1.0], atol=1e-6)
        assert (np.diff(times) > 0).all()
    np.testing.assert_allclose(np.diff(uniform_times(evaluations)), 1 / evaluations, atol=1e-6)
    t = np.asarray(angular_times(evaluations), np.float64)
    angles = np.arctan2(t, 1.0 - t)
    np.testing.assert_allclose(np.diff(angles), np.pi / 2 / evaluations, atol=1e-6)


@pytest.mark.parametrize("evaluations", [1, 5])
def test_euler_is_exact_where_the_data_is_known(evaluations):
    x_0, x_1 = draws()
    out = jax.jit(lambda x, t: euler(lambda x, t: x_1, x, t))(x_0, uniform_times(evaluations))
    np.testing.assert_array_equal(out, x_1)


def test_euler_visits_the_straight_path():
    x_0, x_1 = draws()
    seen = []

    def denoiser(x, t):
        seen.append((x, t))
        return jnp.asarray(x_1)

    with jax.disable_jit():  # so that the calls can be seen
        euler(denoiser, jnp.asarray(x_0), uniform_times(5))
    assert len(seen) == 5  # evaluations, as they are counted and reported
    for i, (x, t) in enumerate(seen):
        assert float(t) == pytest.approx(i / 5)
        np.testing.assert_allclose(x, interpolate(x_0, x_1, t), atol=1e-5)


def test_euler_on_a_linear_field_equals_the_recurrence():
    x_0, bias = draws()
    matrix = np.random.default_rng(2).normal(0.0, 0.4, (5, 5)).astype(np.float32)
    times = np.array([0.0, 0.1, 0.45, 0.7, 1.0], np.float32)
    out = jax.jit(lambda x, t: euler(lambda x, _: x @ matrix + bias, x, t))(x_0, times)

    x = x_0.astype(np.float64)
    for t, t_next in pairwise(times):
        share = (t_next - t) / (1.0 - t)
        x = (1.0 - share) * x + share * (x @ matrix + bias)
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-5)


def test_euler_converges_to_the_flow_at_first_order():
    """From N(0, 1) to N(m, s^2) the flow is x_1 = m + s x_0; the mean is exact at once."""
    s, m = 0.5, 2.0
    x_0 = np.linspace(-2.0, 2.0, 9, dtype=np.float32)[:, None]

    def denoiser(x, t):
        return m + t * s**2 / ((1 - t) ** 2 + t**2 * s**2) * (x - t * m)

    def error(evaluations):
        out = jax.jit(lambda x: euler(denoiser, x, uniform_times(evaluations)))(x_0)
        assert float(out[4, 0]) == pytest.approx(m, abs=1e-5)
        return np.abs(out - (m + s * x_0)).max()

    errors = [error(n) for n in (10, 20, 40, 80)]
    ratios = np.array(errors[:-1]) / errors[1:]
    assert errors[0] < 0.3 and ((ratios > 1.7) & (ratios < 2.4)).all()


def test_a_loop_on_the_host_takes_the_same_steps():
    intervals = (jnp.array([0.0, 0.25]), jnp.array([0.25, 0.5]))

    def steps(x, interval):
        start, end = interval
        return x * (1.0 + end - start) + start, None

    found, _ = host_scan(steps, jnp.ones(2), intervals)
    expected, _ = jax.lax.scan(steps, jnp.ones(2), intervals)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found, (1.0 * 1.25) * 1.25 + 0.25, rtol=1e-6)
