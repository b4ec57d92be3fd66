"""zinb against numpyro, theory, brute-force likelihood and the edges of its domain."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from scipy import stats
from scipy.optimize import minimize

from stfm_jax.errors import InputError
from stfm_jax.ops import zinb

# One compilation a shape instead of one a primitive: seconds for the whole file.
log_prob = jax.jit(zinb.log_prob)
sample = jax.jit(zinb.sample, static_argnames="shape")


@jax.jit
def numpyro_log_prob(counts, mu, theta, pi_logits):
    zinb2 = npd.ZeroInflatedNegativeBinomial2(mu, theta, gate_logits=pi_logits)
    return zinb2.log_prob(counts)


def scipy_log_prob(counts, mu, theta, pi_logits):
    mu, theta, pi_logits = (np.asarray(a, np.float64) for a in (mu, theta, pi_logits))
    pi = 1 / (1 + np.exp(-pi_logits))
    nb = stats.nbinom.logpmf(counts, theta, theta / (theta + mu))
    return np.where(counts == 0, np.log(pi + (1 - pi) * np.exp(nb)), np.log1p(-pi) + nb)


def zinb_moments(mu, theta, pi_logits):
    """Mean (1 - pi) mu and variance (1 - pi) (mu + mu^2/theta + pi mu^2)."""
    pi = 1 / (1 + np.exp(-np.float64(pi_logits)))
    return (1 - pi) * mu, (1 - pi) * (mu + mu**2 / theta + pi * mu**2)


def test_log_prob_agrees_with_numpyro_and_scipy():
    counts, mu, theta, pi_logits = np.meshgrid(
        [0, 1, 2, 7, 60, 900], [0.01, 1.105, 40.0], [0.05, 1.0, 30.0], [-12.0, 0.0, 3.0]
    )
    args = (counts, np.float32(mu), np.float32(theta), np.float32(pi_logits))
    ours = log_prob(*args)
    np.testing.assert_allclose(ours, numpyro_log_prob(*args), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(ours, scipy_log_prob(*args), rtol=3e-6, atol=3e-6)


def test_log_prob_is_accurate_near_poisson_in_float32():
    counts = np.arange(60)
    ours = log_prob(counts, jnp.float32(20.0), jnp.float32(1e6), -jnp.inf)
    np.testing.assert_allclose(ours, stats.poisson.logpmf(counts, 20.0), atol=1e-3)


def test_probabilities_sum_to_one():
    counts = jnp.arange(4000)[:, None]
    mu, theta = jnp.array([0.3, 5.0, 50.0]), jnp.array([0.5, 1.0, 8.0])
    total = jnp.exp(log_prob(counts, mu, theta, jnp.array([-2.0, 0.0, 1.0]))).sum(axis=0)
    np.testing.assert_allclose(total, 1.0, atol=2e-5)


def test_gradients_are_finite_and_right():
    counts = jnp.array([0.0, 0.0, 0.0, 1.0, 12.0, 3000.0, 2.0])
    mu = jnp.array([0.0, 1e-8, 500.0, 1e-6, 12.0, 1.0, 1.0])
    theta = jnp.array([1.0, 1e-2, 1e4, 1e4, 1e4, 1e-2, 1.0])
    logits = jnp.array([0.0, -15.0, -40.0, 40.0, -15.0, 3.0, -jnp.inf])
    grads = jax.jit(jax.grad(lambda *p: log_prob(counts, *p).sum(), argnums=(0, 1, 2)))(
        mu, theta, logits
    )
    assert all(np.isfinite(g).all() for g in grads)
    point = np.array([2.0, 0.7, -0.4])
    gradient_of = jax.jit(jax.grad(lambda p, k: zinb.log_prob(k, p[0], p[1], p[2])))
    for k in (0, 3):
        gradient = gradient_of(jnp.float32(point), k)
        numeric = [
            (scipy_log_prob(k, *(point + d)) - scipy_log_prob(k, *(point - d))) / 2e-5
            for d in 1e-5 * np.eye(3)
        ]
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5)


TRUE = zinb.ZinbParams(
    np.float32([1.105, 5.0, 30.0, 0.8, 100.0]),
    np.float32([1.0, 0.6, 5.0, 3.0, 2.0]),
    np.float32([0.0, -1.0, 1.5, -15.0, -15.0]),
)


@pytest.fixture(scope="module")
def draws():
    return np.asarray(sample(jax.random.key(0), *TRUE, shape=(40_000, 5)), np.float64)


def test_sample_moments_follow_theory(draws):
    assert (draws == np.round(draws)).all() and (draws >= 0).all()
    mean, variance = zinb_moments(*TRUE)
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * np.sqrt(variance / len(draws))).all()
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.08)
    probability_zero = np.exp(scipy_log_prob(np.zeros(5, int), *TRUE))
    np.testing.assert_allclose((draws == 0).mean(axis=0), probability_zero, atol=0.012)


def test_sample_takes_every_kind_of_key_and_broadcasts():
    mu = jnp.array([0.5, 5.0, 50.0])
    counts = sample(jax.random.key(0, impl="rbg"), mu, 1.0, 0.0, (400, 3))
    chex.assert_shape(counts, (400, 3))
    assert (np.diff(counts.mean(axis=0)) > 0).all()
    raw = jax.random.key_data(jax.random.key(0, impl="threefry2x32"))
    chex.assert_shape(sample(raw, mu, jnp.ones((2, 1)), 0.0), (2, 3))


def test_sample_can_be_keyed_per_spot():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(50))
    mu = jnp.array([1.0, 9.0])
    draw = jax.jit(jax.vmap(lambda k: zinb.sample(k, mu, 1.0, -15.0)))
    chex.assert_trees_all_equal(draw(keys)[::-1], draw(keys[::-1]))


def test_fit_recovers_parameters(draws):
    fitted = zinb.fit(draws)
    chex.assert_trees_all_equal_shapes_and_dtypes(fitted, TRUE)
    np.testing.assert_allclose(fitted.mu, TRUE.mu, rtol=0.08)
    np.testing.assert_allclose(fitted.theta, TRUE.theta, rtol=0.25)
    pi, true_pi = (1 / (1 + np.exp(-p.pi_logits)) for p in (fitted, TRUE))
    np.testing.assert_allclose(pi, true_pi, atol=0.03)
    np.testing.assert_allclose(zinb_moments(*fitted)[0], draws.mean(axis=0), rtol=1e-3)


def test_fit_is_not_beaten_by_a_general_optimiser():
    rng = np.random.default_rng(0)
    counts = np.stack(
        [
            rng.negative_binomial(0.5, 0.1, 300) * (rng.random(300) < 0.6),
            rng.poisson(3.0, 300),
            rng.poisson(2.0, 300) * (rng.random(300) < 0.5),
            rng.poisson(rng.choice([0.2, 15.0], 300)),
        ],
        axis=1,
    )
    fitted = zinb.fit(counts)
    for gene in range(counts.shape[1]):
        column = counts[:, gene]

        def loss(x, column=column):
            return -scipy_log_prob(column, np.exp(x[0]), np.exp(x[1]), x[2]).sum()

        bounds = [(-10, 10), tuple(np.log(zinb.THETA_RANGE)), (zinb.PI_LOGITS_MIN, 15)]
        best = min(
            minimize(loss, start, bounds=bounds, method="L-BFGS-B").fun
            for start in ([0, 0, 0], [1, 2, -3], [2, -1, 1], [1, 6, -5])
        )
        ours = loss([np.log(fitted.mu[gene]), np.log(fitted.theta[gene]), fitted.pi_logits[gene]])
        assert ours <= best + 1e-3, (gene, ours, best)


def test_fit_of_hard_genes():
    n = 200
    rng = np.random.default_rng(0)
    single = np.zeros(n)
    single[7] = 300
    genes = {
        "all zero": np.zeros(n),
        "constant": np.full(n, 5),
        "underdispersed": rng.binomial(10, 0.9, n),
        "ones": (rng.random(n) < 0.3).astype(float),
        "one spot": single,
        "huge": rng.negative_binomial(2, 2e-5, n),
    }
    fitted = zinb.fit(np.stack(list(genes.values()), axis=1))
    assert all(np.isfinite(leaf).all() for leaf in fitted)
    at = {name: zinb.ZinbParams(*(leaf[i] for leaf in fitted)) for i, name in enumerate(genes)}
    assert 0 < at["all zero"].mu <= 0.5 / n
    for name in ("all zero", "constant", "underdispersed", "ones"):
        np.testing.assert_allclose(at[name].theta, zinb.THETA_RANGE[1], rtol=1e-3)
        np.testing.assert_allclose(at[name].mu, genes[name].mean(), rtol=1e-3, atol=0.5 / n)
        assert at[name].pi_logits == zinb.PI_LOGITS_MIN
    np.testing.assert_allclose(zinb_moments(*at["one spot"])[0], 300 / n, rtol=0.05)
    np.testing.assert_allclose(at["huge"].mu, genes["huge"].mean(), rtol=0.02)
    counts = np.stack(list(genes.values()), axis=1)
    assert np.isfinite(log_prob(counts, *fitted)).all()


def test_fit_of_one_spot_and_of_no_genes():
    fitted = zinb.fit(np.array([[0, 3]]))
    assert all(np.isfinite(leaf).all() for leaf in fitted)
    chex.assert_shape(zinb.fit(np.zeros((5, 0))).mu, (0,))


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
def test_fit_refuses_what_is_not_a_count(bad):
    counts = np.ones((4, 3))
    counts[2, 1] = bad
    with pytest.raises(InputError, match="column 1"):
        zinb.fit(counts)


def test_fit_refuses_no_spots():
    with pytest.raises(InputError, match="n > 0"):
        zinb.fit(np.zeros((0, 3)))
