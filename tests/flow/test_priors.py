"""Prior draws against scipy's distributions and against the moments the prior claims."""

import jax
import numpy as np
import numpyro.distributions as npd
import pytest
from scipy import stats

from stfm_jax.flow import priors

N = 40_000
MU = np.array([0.05, 1.105, 8.0, 60.0])
THETA = np.array([0.5, 1.0, 3.0, 20.0])
LOGITS = np.array([-1.0, 0.1, -2.0, -8.0])
G = len(MU)


@jax.jit
def draw(prior, key, slide, place):
    return priors.sample(prior, priors.spot_keys(key, slide, place))


def draws(prior, seed=0, n=N):
    place = np.arange(n, dtype=np.int32)
    return np.asarray(draw(prior, jax.random.key(seed), np.zeros(n, np.int32), place), np.float64)


def library_sizes():
    return np.exp(np.random.default_rng(0).normal(np.log(5000.0), 0.6, 3000))


@pytest.fixture(scope="module")
def x_0():
    """One large draw of the count prior without library sizes."""
    return draws(priors.zinb_prior(MU, THETA, LOGITS))


@pytest.mark.parametrize("gene", range(G))
def test_counts_follow_scipys_zero_inflated_nbinom(x_0, gene):
    counts = np.expm1(x_0[:, gene])
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    nb = stats.nbinom(THETA[gene], THETA[gene] / (THETA[gene] + MU[gene]))
    pi = 1 / (1 + np.exp(-LOGITS[gene]))
    edges = np.unique(nb.ppf(np.linspace(0.0, 1.0, 21)[1:-1]).astype(int))  # bins of like mass
    cdf = np.append(pi + (1 - pi) * nb.cdf(edges), 1.0)
    expected = N * np.diff(cdf, prepend=0.0)
    observed = np.bincount(np.searchsorted(edges, np.round(counts)), minlength=len(edges) + 1)
    keep = expected > 5
    observed, expected = observed[keep], expected[keep]
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def assert_moments(x, prior):
    n = len(x)
    std = np.sqrt(np.diag(prior.covariance))
    assert (np.abs(x.mean(axis=0) - prior.mean) < 4.5 * std / np.sqrt(n)).all()
    centred = x - x.mean(axis=0)
    products = centred[:, :, None] * centred[:, None]
    error = products.std(axis=0) / np.sqrt(n)
    assert (np.abs(products.mean(axis=0) - prior.covariance) < 5 * error + 1e-6).all()


def test_moments_of_log1p(x_0):
    prior = priors.zinb_prior(MU, THETA, LOGITS)
    assert_moments(x_0, prior)
    off = prior.covariance - np.diag(np.diag(prior.covariance))
    np.testing.assert_allclose(off, 0.0, atol=1e-6)  # genes are independent


def test_moments_of_log1p_cp10k():
    """The library size, shared by the genes of a spot, correlates them."""
    prior = priors.zinb_prior(MU, THETA, LOGITS, library_sizes())
    assert_moments(draws(prior), prior)
    assert prior.covariance[2, 3] > 0.1
    assert prior.scales.shape == (priors.NUM_SCALES,)


def test_cp10k_draws_are_scaled_counts():
    """A single library size of 20,000 halves every count before the log."""
    prior = priors.zinb_prior(MU, THETA, LOGITS, np.full(50, 20_000.0))
    halves = 2 * np.expm1(draws(prior, n=500))
    np.testing.assert_allclose(halves, np.round(halves), atol=2e-3)
    same = np.expm1(draws(priors.zinb_prior(MU, THETA, LOGITS), n=500))
    np.testing.assert_allclose(halves, same, atol=2e-3)


def test_published_scalar_prior():
    """The public code's, in its own parameters: total_count 1, logits 0.1, zero inflation 0."""
    theirs = npd.ZeroInflatedDistribution(npd.NegativeBinomialLogits(1.0, 0.1), gate_logits=0.0)
    prior = priors.zinb_scalar_prior(3)
    assert (np.diff(prior.cdf, axis=0) == 0).all()
    expected = np.cumsum(np.exp(theirs.log_prob(np.arange(30))))
    np.testing.assert_allclose(prior.cdf[0, :30], expected, atol=1e-5)
    counts, mu = np.expm1(draws(prior)), np.exp(0.1)
    np.testing.assert_allclose(counts.mean(axis=0), mu / 2, atol=0.03)
    np.testing.assert_allclose((counts < 0.5).mean(axis=0), 0.5 + 0.5 / (1 + mu), atol=0.01)


def test_gaussian_prior():
    mean, std = np.array([-1.0, 0.0, 3.0]), np.array([0.2, 1.0, 2.0])
    prior = priors.gaussian_prior(mean, std)
    x = draws(prior)
    assert_moments(x, prior)
    for gene in range(3):
        assert stats.kstest(x[:, gene], stats.norm(mean[gene], std[gene]).cdf).pvalue > 1e-4


def test_zero_prior():
    np.testing.assert_array_equal(draws(priors.gaussian_prior(np.zeros(3), np.zeros(3)), n=9), 0.0)


def test_draws_differ_between_spots_slides_and_keys():
    prior = priors.gaussian_prior(np.zeros(2), np.ones(2))
    slide = np.repeat(np.arange(2, dtype=np.int32), 50)
    place = np.tile(np.arange(50, dtype=np.int32), 2)
    a, b = (np.asarray(draw(prior, jax.random.key(s), slide, place)) for s in (0, 1))
    assert len(np.unique(np.concatenate([a, b]))) == 400


def test_draws_are_keyed_to_a_spots_place():
    """Neither padding nor order nor company changes what a spot draws."""
    prior = priors.zinb_prior(MU, THETA, LOGITS, library_sizes())
    key, n = jax.random.key(5), 64
    place, slide = np.arange(n, dtype=np.int32), np.full(n, 1, np.int32)
    base = np.asarray(draw(prior, key, slide, place))
    order = np.random.default_rng(0).permutation(n)
    np.testing.assert_array_equal(draw(prior, key, slide, place[order]), base[order])
    padded = [np.concatenate([a, np.zeros(32, np.int32)]) for a in (slide, place)]
    np.testing.assert_array_equal(draw(prior, key, *padded)[:n], base)
    np.testing.assert_array_equal(draw(prior, key, slide[:9], place[10:19]), base[10:19])


def test_one_trace_serves_priors_of_every_kind():
    """All kinds are the same pytree, so folds and ablations share compiled code."""
    kinds = [
        priors.zinb_prior(MU, THETA, LOGITS),
        priors.zinb_prior(MU / 2, THETA, LOGITS, library_sizes()),
        priors.zinb_scalar_prior(G),
        priors.gaussian_prior(np.zeros(G), np.ones(G)),
    ]
    shapes = [[(a.shape, a.dtype) for a in map(np.asarray, prior)] for prior in kinds]
    assert all(s == shapes[0] for s in shapes)


def test_large_counts_need_no_table_of_each():
    """A gene with counts of millions: a short table, and the distribution all the same."""
    mu, theta = np.array([3e6, 8.0]), np.array([2.0, 3.0])
    prior = priors.zinb_prior(mu, theta, np.array([-3.0, -2.0]))
    assert prior.cdf.shape[1] < 2 * priors.MOST_TABLE
    x = draws(prior)
    assert_moments(x, prior)
    nb = stats.nbinom(theta, theta / (theta + mu))
    pi = 1 / (1 + np.exp([3.0, 2.0]))
    for quantile in (0.2, 0.5, 0.99):
        expected = np.log1p(nb.ppf((quantile - pi) / (1 - pi)))
        np.testing.assert_allclose(np.quantile(x, quantile, axis=0), expected, atol=0.05)


@pytest.mark.parametrize("above", [-3, -2, -1, 0, 1, 2, 10_000])
def test_counts_are_tabled_one_by_one_as_far_as_said(above):
    """Up to the largest at least; beyond in steps below 0.1 %, which is few."""
    largest = priors.MOST_TABLE + above
    support = priors._tabled(largest)
    np.testing.assert_array_equal(support[: priors.MOST_TABLE], np.arange(priors.MOST_TABLE))
    assert support[-1] >= largest and (np.diff(support) >= 0).all()
    assert len(support) < priors.MOST_TABLE + 200
    np.testing.assert_array_less(np.diff(support[priors.MOST_TABLE :]), 1.1e-3 * largest)
