"""The linear-Gaussian part of the flow against the textbook's conditional Gaussian."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.flow import gaussian
from stfm_jax.flow.path import angular_times, interpolate, uniform_times

G, N = 6, 30
TIMES = (0.0, 0.2, 0.5, 0.83, 0.99)


def random_covariance(rng, scale):
    a = rng.normal(size=(G, 2 * G))
    d = np.diag(scale * rng.uniform(0.5, 1.5, G))
    return d @ (a @ a.T / (2 * G)) @ d


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    mean_0 = rng.normal(size=G)
    cov_0, cov_1 = random_covariance(rng, 1.3), random_covariance(rng, 0.5)
    path = gaussian.gaussian_path(mean_0, cov_0, cov_1)
    # The stored path is float32: take the moments it stands for, so tests can be tight.
    path = jax.tree.map(lambda a: np.asarray(a, np.float64), path)
    path = path._replace(inverse_root=np.linalg.inv(path.root))
    q, _ = np.linalg.qr(path.eigenvectors)
    path = path._replace(eigenvectors=q)
    half = path.root @ q * np.sqrt(path.eigenvalues)
    return {
        "path": path,
        "mean_0": path.mean_0,
        "cov_0": path.root @ path.root,
        "cov_1": half @ half.T,
        "given": (mean_0, cov_0, cov_1),
        "anchor": rng.normal(1.0, 1.0, (N, G)),
        "x_0": rng.multivariate_normal(path.mean_0, path.root @ path.root, N),
        "x_1": rng.normal(1.0, 1.0, (N, G)),
    }


def conditional_mean(s, x_t, anchor, t):
    """E[x_1 | x_t] for independent x_0 ~ N(mean_0, cov_0), x_1 ~ N(anchor, cov_1)."""
    total = (1 - t) ** 2 * s["cov_0"] + t**2 * s["cov_1"]
    centred = x_t - (1 - t) * s["mean_0"] - t * anchor
    return anchor + centred @ np.linalg.solve(total, t * s["cov_1"])


def conditional_covariance(s, t):
    total = (1 - t) ** 2 * s["cov_0"] + t**2 * s["cov_1"]
    return s["cov_1"] - t**2 * s["cov_1"] @ np.linalg.solve(total, s["cov_1"])


def test_path_holds_the_moments_it_was_given(setting):
    mean_0, cov_0, cov_1 = setting["given"]
    np.testing.assert_allclose(setting["mean_0"], mean_0, rtol=1e-5)
    np.testing.assert_allclose(setting["cov_0"], cov_0, atol=1e-5)
    np.testing.assert_allclose(setting["cov_1"], cov_1, atol=1e-5)
    np.testing.assert_allclose(setting["path"].root, setting["path"].root.T, atol=1e-6)


def test_a_constant_prior_gets_a_path_that_can_be_computed(setting):
    path = gaussian.gaussian_path(np.zeros(G), np.zeros((G, G)), setting["cov_1"])
    assert all(np.isfinite(a).all() for a in path) and (path.eigenvalues > 0).all()
    # Its draws carry nothing: at t = 0 the posterior mean is the anchor.
    z = gaussian.whiten(path, np.zeros((N, G)), setting["anchor"], 0.0)
    out = gaussian.posterior(path, z, jnp.zeros((N, G)), setting["anchor"], 0.0)
    np.testing.assert_allclose(out, setting["anchor"], atol=1e-6)


def test_singular_covariances_stay_finite():
    """A gene that never varies, in prior or data, must not divide by zero."""
    cov = np.eye(G)
    cov[0, 0] = 0.0
    for pair in ((cov, np.eye(G)), (np.eye(G), cov)):
        path = gaussian.gaussian_path(np.zeros(G), *pair)
        x = gaussian.unwhiten(path, jnp.ones((2, G)), jnp.zeros((2, G)), 0.5)
        assert np.isfinite(x).all() and (path.eigenvalues > 0).all()


@pytest.mark.parametrize("t", [*TIMES, 1.0])
def test_whiten_and_unwhiten_are_inverse(setting, t):
    path, anchor = setting["path"], setting["anchor"]
    x_t = interpolate(setting["x_0"], setting["x_1"], t)
    z = gaussian.whiten(path, x_t, anchor, t)
    np.testing.assert_allclose(gaussian.unwhiten(path, z, anchor, t), x_t, atol=1e-9)


@pytest.mark.parametrize("t", [*TIMES, 1.0])
def test_whitened_state_has_unit_covariance(setting, t):
    """By linearity: z = A (x_t - m_t), and A C A^T must be the identity."""
    zero = np.zeros((1, G))
    at = gaussian.mean_path(setting["path"], zero, t)
    matrix = gaussian.whiten(setting["path"], np.eye(G) + at, zero, t).T
    total = (1 - t) ** 2 * setting["cov_0"] + t**2 * setting["cov_1"]
    np.testing.assert_allclose(matrix @ total @ matrix.T, np.eye(G), atol=1e-8)


@pytest.mark.parametrize("t", TIMES)
def test_posterior_is_the_conditional_gaussian(setting, t):
    path, anchor = setting["path"], setting["anchor"]
    x_t = interpolate(setting["x_0"], setting["x_1"], t)
    z = gaussian.whiten(path, x_t, anchor, t)
    mean = gaussian.posterior(path, z, jnp.zeros((N, G)), anchor, t)
    np.testing.assert_allclose(mean, conditional_mean(setting, x_t, anchor, t), atol=1e-8)
    # The network's unit is one posterior standard deviation.
    moved = gaussian.posterior(path, z[:1] * jnp.ones((G, 1)), jnp.eye(G), anchor[:1], t) - mean[0]
    covariance = conditional_covariance(setting, t)
    np.testing.assert_allclose(moved.T @ moved, covariance, atol=1e-8)
    variance = gaussian.posterior_variance(path, jnp.full((1, 1), t))
    np.testing.assert_allclose(variance, [[np.trace(covariance) / G]], rtol=1e-8)


def test_time_per_spot_equals_a_scalar(setting):
    path, anchor, x = setting["path"], setting["anchor"], setting["x_1"]
    t = np.linspace(0.0, 0.95, N)[:, None]
    z = gaussian.whiten(path, x, anchor, t)
    rows = [gaussian.whiten(path, x[i : i + 1], anchor[i : i + 1], t[i, 0]) for i in (0, 7, 29)]
    np.testing.assert_allclose(z[np.array([0, 7, 29])], np.concatenate(rows), atol=1e-10)
    out = gaussian.posterior(path, z, jnp.sin(z), anchor, t)
    row = gaussian.posterior(path, z[7:8], jnp.sin(z[7:8]), anchor[7:8], t[7, 0])
    np.testing.assert_allclose(out[7:8], row, atol=1e-10)


def test_gaussian_flow_stands_still_in_z(setting):
    """Integrates dx/dt = (E[x_1 | x_t] - x_t) / (1 - t) by RK4: z must not move."""
    path, anchor = setting["path"], setting["anchor"]

    def field(x, t):
        return (conditional_mean(setting, x, anchor, t) - x) / (1 - t)

    x, times = setting["x_0"], np.linspace(0.0, 0.9, 301)
    start = gaussian.whiten(path, x, anchor, 0.0)
    for t, t_next in pairwise(times):
        h = t_next - t
        a = field(x, t)
        b = field(x + h / 2 * a, t + h / 2)
        c = field(x + h / 2 * b, t + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + field(x + h * c, t_next))
    np.testing.assert_allclose(gaussian.whiten(path, x, anchor, 0.9), start, atol=1e-5)


@pytest.mark.parametrize("t", TIMES)
def test_trigonometric_identities(setting, t):
    """In the eigenbasis z_t = cos phi z_0 + sin phi z_1, the target is dz / dphi."""
    path, anchor = setting["path"], setting["anchor"]
    v = path.eigenvectors

    def in_basis(x, t):
        return gaussian.whiten(path, x, anchor, t) @ v

    z_0, z_1 = in_basis(setting["x_0"], 0.0), in_basis(setting["x_1"], 1.0)
    phi = gaussian.angle(path, jnp.asarray(t))
    assert phi.shape == (G,)
    np.testing.assert_allclose(
        np.cos(phi), (1 - t) / np.sqrt(gaussian.relative_variance(path, t)), atol=1e-9
    )
    x_t = interpolate(setting["x_0"], setting["x_1"], t)
    z_t = np.cos(phi) * z_0 + np.sin(phi) * z_1
    np.testing.assert_allclose(in_basis(x_t, t), z_t, atol=1e-8)
    y = np.cos(phi) * z_1 - np.sin(phi) * z_0
    x_1_hat = gaussian.posterior(path, z_t @ v.T, y @ v.T, anchor, t)
    np.testing.assert_allclose(x_1_hat, setting["x_1"], atol=1e-7)


def test_angle_runs_from_zero_to_a_quarter_turn(setting):
    phi = gaussian.angle(setting["path"], jnp.array([[0.0], [0.4], [1.0]]))
    np.testing.assert_allclose(phi[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(phi[2], np.pi / 2, atol=1e-12)
    assert (np.diff(phi, axis=0) > 0).all()


@pytest.mark.parametrize("times", [uniform_times, angular_times])
@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_a_silent_network_gives_the_target_gaussian_exactly(setting, times, evaluations):
    """Moments of the carried prior by linearity: no sampling error."""
    path, anchor = setting["path"], np.zeros((G, G))

    def network(z, t):
        return jnp.zeros_like(z)

    x_0 = np.eye(G) + setting["mean_0"]
    out = gaussian.exponential_euler(network, path, x_0, anchor, times(evaluations))
    np.testing.assert_allclose(out.T @ setting["cov_0"] @ out, setting["cov_1"], atol=1e-7)
    centre = gaussian.exponential_euler(
        network, path, np.tile(setting["mean_0"], (N, 1)), setting["anchor"], times(evaluations)
    )
    np.testing.assert_allclose(centre, setting["anchor"], atol=1e-8)


def test_euler_of_the_angle_reaches_data_known_beforehand(setting):
    """With the true dz / dphi of each pair the draw ends at its x_1, at first order."""
    path, anchor, v = setting["path"], setting["anchor"], setting["path"].eigenvectors
    z_0 = gaussian.whiten(path, setting["x_0"], anchor, 0.0) @ v
    z_1 = gaussian.whiten(path, setting["x_1"], anchor, 1.0) @ v

    def network(z, t):
        phi = gaussian.angle(path, t)
        return (jnp.cos(phi) * z_1 - jnp.sin(phi) * z_0) @ v.T

    @jax.jit
    def error(times):
        out = gaussian.exponential_euler(network, path, setting["x_0"], anchor, times)
        return jnp.abs(out - setting["x_1"]).max()

    coarse, fine = error(angular_times(400)), error(angular_times(800))
    assert fine < 0.05 and 1.8 < coarse / fine < 2.2
