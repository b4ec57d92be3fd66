"""The prior that knows a spot's neighbours: its draws against its moments, and its fit."""

import chex
import jax
import numpy as np
import pytest
from scipy import stats

from stfm_jax.flow import context_prior, priors
from stfm_jax.ops import metrics, zinb
from stfm_jax.ops.context import Context, without_expression

G, K, P = 4, 5, 3  # genes, retrieved spots, features
SPOTS, TIMES = 4, 2500  # of the Monte Carlo tests: each of some spots is drawn so often
PADDED, UNKNOWN = 3, 1  # columns of every context
LIBRARY = np.exp(np.random.default_rng(0).normal(np.log(5000.0), 0.6, 500))


def tissue(n, seed):
    """Inputs [n, 2 P + G + 1], counts [n, G] and context of spots that look like neighbours."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(n, P))
    axes = np.random.default_rng(99).normal(size=(P, G))
    rate = np.exp(np.log([0.3, 2.0, 8.0, 40.0]) + 0.5 * field @ axes)
    theta = np.array([0.8, 1.5, 3.0, 10.0])
    counts = rng.poisson(rng.gamma(theta, rate / theta)) * (rng.random((n, G)) > 0.2)
    known = np.tile(np.arange(K) < UNKNOWN + 2, (n, 1))
    known[:, UNKNOWN] = False
    weight = rng.dirichlet(np.ones(K), n) * (np.arange(K) < PADDED)
    around = np.log1p(rng.poisson(rate[:, None], (n, K, G)))
    context = Context(
        features=field[:, None] + 0.5 * rng.normal(size=(n, K, P)),
        distance=rng.uniform(0, 1.0, (n, K, 2)),
        weight=weight / weight.sum(axis=1, keepdims=True),
        known=known,
        expr=np.where(known[..., None], around, 0.0),
        residual=np.zeros((n, K, G)),
    )
    context = jax.tree.map(lambda a: a.astype(bool if a.dtype == bool else np.float32), context)
    own = (field + 0.5 * rng.normal(size=(n, P))).astype(np.float32)
    return own, context, counts.astype(np.float32)


def inputs(own, context):
    return np.asarray(context_prior.inputs(own, context, MEAN, STD))


MEAN = np.log1p(tissue(250, 0)[2]).mean(axis=0)
STD = np.log1p(tissue(250, 0)[2]).std(axis=0)


@pytest.fixture(scope="module")
def fitted():
    """Fits for `log1p` and for `log1p_cp10k`."""
    own, context, counts = tissue(250, 0)
    x = inputs(own, context)
    start, known = zinb.fit(counts), slice(2 * P, x.shape[1])
    return [
        context_prior.fit(x, known, counts, library, start, rho=0.6, decay=0.7)
        for library in (None, LIBRARY)
    ]


@jax.jit
@chex.assert_max_traces(1)  # one trace serves every fold, with and without library sizes
def drawn(prior, keys, x, context):
    draws = context_prior.sample(prior, keys, x, context)
    return draws, context_prior.mean(prior, x, context)


def many(prior, own, context, seed=0):
    """Draws [SPOTS, TIMES, G] and means [SPOTS, G] of some spots."""
    x = inputs(own, context)
    x, context = jax.tree.map(lambda a: np.repeat(a, TIMES, axis=0), (x, context))
    keys = jax.random.split(jax.random.key(seed), SPOTS * TIMES)
    draws, mean = (np.asarray(a) for a in drawn(prior, keys, x, context))
    return draws.reshape(SPOTS, TIMES, G), mean[::TIMES]


@pytest.fixture(scope="module")
def spots():
    """Own features and context of new spots, half of them without a measured neighbour."""
    own, context, _ = tissue(SPOTS, 1)
    known = context.known & (np.arange(SPOTS) % 2 == 0)[:, None]
    return own, context._replace(known=known)


@pytest.mark.parametrize("normalization", ["log1p", "log1p_cp10k"])
def test_the_mean_is_that_of_draws(fitted, spots, normalization):
    prior = fitted[normalization == "log1p_cp10k"]
    draws, mean = many(prior, *spots)
    error = 4.5 * draws.std(axis=1) / np.sqrt(TIMES) + 5e-3
    assert (np.abs(draws.mean(axis=1) - mean) < error).all()
    assert error.max() < 0.2 and np.ptp(mean, axis=0).min() > 0.1


def test_draws_are_scaled_by_library_sizes(fitted, spots):
    own, context = spots
    alone = without_expression(context)
    counts = np.expm1(many(fitted[0], own, alone)[0][:, :50])
    np.testing.assert_allclose(counts, np.round(counts), rtol=1e-4, atol=1e-4)
    doubled = fitted[0]._replace(scales=np.full(priors.NUM_SCALES, 2.0, np.float32))
    twice = np.expm1(many(doubled, own, alone)[0][:, :50])
    np.testing.assert_allclose(twice, 2 * counts, rtol=1e-4, atol=1e-4)
    middles = (np.arange(priors.NUM_SCALES) + 0.5) / priors.NUM_SCALES
    np.testing.assert_allclose(fitted[1].scales, np.quantile(1e4 / LIBRARY, middles), rtol=1e-6)


def test_without_known_neighbours_nothing_is_empirical(fitted, spots):
    """Whatever stands where expression is not known, and whatever rho."""
    own, context = spots
    alone = without_expression(context)
    poison = alone._replace(expr=np.full_like(context.expr, 7.25))
    draws, mean = many(fitted[0], own, alone)
    for prior, seen in ((fitted[0], poison), (fitted[0]._replace(rho=np.float32(1)), poison)):
        again = many(prior, own, seen)
        np.testing.assert_array_equal(again[0], draws)
        np.testing.assert_array_equal(again[1], mean)


@pytest.mark.parametrize("rho", [0.25, 1.0])
def test_neighbours_are_drawn_whole_by_weight_and_height(fitted, spots, rho):
    """Frequencies are weight * exp(-|dz| / l); neither padding nor unknown spots are drawn."""
    own, context = spots
    rng = np.random.default_rng(5)
    expr = 0.4 + rng.uniform(0.01, 0.09, context.expr.shape).astype(np.float32)  # log1p of nothing
    prior = fitted[0]._replace(rho=np.float32(rho))
    draws, _ = many(prior, own, context._replace(expr=expr))
    for i in range(0, SPOTS, 2):
        rows = (draws[i][:, None] == expr[i]).all(axis=2)  # [TIMES, K]
        parts = (draws[i][:, None] == expr[i]).any(axis=2)
        np.testing.assert_array_equal(rows, parts)
        taken = rows.sum(axis=0)
        wanted = context.weight[i].astype(np.float64) * context.known[i]
        wanted *= np.exp(-context.distance[i, :, 1] / 0.7)
        wanted /= wanted.sum()
        assert not taken[PADDED:].any() and not taken[UNKNOWN]
        assert stats.binomtest(int(taken.sum()), TIMES, rho).pvalue > 1e-4
        there = wanted > 0
        assert there.sum() == 2
        assert stats.chisquare(taken[there], taken.sum() * wanted[there]).pvalue > 1e-4
    foreign = (draws[1::2][:, :, None] == expr[1::2][:, None]).any()
    assert not foreign, "drawn from a spot that is not known"


def test_draws_are_keyed_to_a_spot(fitted, spots):
    """Neither the order of the rows nor what is behind them changes what a spot draws."""
    own, context = jax.tree.map(lambda a: np.repeat(a, TIMES, axis=0), spots)
    x, n = inputs(own, context), SPOTS * TIMES
    keys = jax.random.split(jax.random.key(3), n)
    base = np.asarray(drawn(fitted[0], keys, x, context)[0])
    order = np.random.default_rng(0).permutation(n)
    mixed = jax.tree.map(lambda a: a[order], (keys, x, context))
    np.testing.assert_array_equal(drawn(fitted[0], *mixed)[0], base[order])
    padded = jax.tree.map(np.array, (x, context))
    for a in jax.tree.leaves(padded):
        a[100:] = 0
    again = np.asarray(drawn(fitted[0], keys, *padded)[0])
    np.testing.assert_array_equal(again[:100], base[:100])
    assert len(np.unique(base.round(5), axis=0)) > n / 4


@jax.jit
def likelihood(prior, x, counts):
    """Of counts [n, G] given inputs, and their expectation."""
    mu, pi_logits = context_prior.parameters(prior, x)
    return zinb.log_prob(counts, mu, prior.theta, pi_logits), jax.nn.sigmoid(-pi_logits) * mu


def test_the_fit_knows_more_than_the_genes_own(fitted):
    """New spots are likelier under it than under the per-gene fit, in both regimes."""
    own, context, counts = tissue(250, 2)
    per_gene = jax.jit(zinb.log_prob)(counts, *zinb.fit(tissue(250, 0)[2]))
    theirs = np.asarray(per_gene).mean(axis=0)
    gains = []
    for seen in (context, without_expression(context)):
        ours, expected = (np.asarray(a) for a in likelihood(fitted[0], inputs(own, seen), counts))
        gains.append((ours.mean(axis=0) - theirs).mean())
        assert (ours.mean(axis=0) > theirs - 0.02).all() and gains[-1] > 0.1
        correlation = metrics.pearson(np.log(expected), np.log1p(counts))
        assert correlation.min() > 0.1 and correlation.mean() > 0.25
        np.testing.assert_allclose(expected.mean(axis=0), counts.mean(axis=0), rtol=0.4)
    assert gains[0] > gains[1] + 0.01  # neighbours' expression tells more than images alone


def test_what_the_network_sees(spots):
    """Neighbours' mean in units of the genes' own, by weight; of none the genes' mean, 0."""
    own, context = spots
    x = inputs(own, context)
    weight = context.weight * context.known
    known = weight.sum(axis=1)
    assert (known[::2] > 0).all() and not known[1::2].any()
    np.testing.assert_allclose(x[:, -1], known, rtol=1e-6)
    np.testing.assert_array_equal(x[:, :P], own)
    around = np.einsum("nk,nkp->np", context.weight, context.features)
    np.testing.assert_allclose(x[:, P : 2 * P], around, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x[1::2, 2 * P : -1], 0.0)
    mean = np.einsum("nk,nkg->ng", weight, context.expr)[::2] / known[::2, None]
    np.testing.assert_allclose(x[::2, 2 * P : -1], (mean - MEAN) / STD, rtol=1e-4, atol=1e-5)
