"""Zero-inflated negative binomial counts: log-probability, samples, per-gene fit.

Notation (docs/methods.md): `mu` is the mean of the NB component, `theta` its inverse dispersion (NB
variance mu + mu^2/theta), `pi_logits` the logit of the zero-inflation probability pi. The ZINB
mean is (1 - pi) mu. Log-probability and samples are JAX functions that broadcast; `fit` runs on the
host in float64. Normalisation of draws (log1p, library size) lives in flow/priors.py.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln
from scipy.special import gammaln, logit

from stfm_jax.errors import InputError

# Bounds of the fit. At theta = 1e4 a gene of mean 100 is within 1 % of Poisson variance; below
# 1e-2 a gamma draw underflows to zero almost always. pi_logits of -15 means pi = 3e-7.
THETA_RANGE = (1e-2, 1e4)
PI_LOGITS_MIN = -15.0


class ZinbParams(NamedTuple):
    """ZINB parameters; a pytree. The scalar prior of STFlow's code is (1.105, 1, 0)."""

    mu: jax.Array  # [...] mean of the NB component, counts
    theta: jax.Array  # [...] inverse dispersion
    pi_logits: jax.Array  # [...] zero-inflation logit


def log_prob(counts: jax.Array, mu: jax.Array, theta: jax.Array, pi_logits: jax.Array) -> jax.Array:
    """Log-probability of counts, elementwise, the arguments broadcast against each other.

    With s = softplus(pi_logits) and l0 = -theta log(1 + mu/theta), the NB's log P(0):

        log P(0) = logaddexp(pi_logits, l0) - s
        log P(k) = l0 - k log(1 + theta/mu) - log k - log B(theta, k) - s,   k > 0

    The Beta function stands for the difference of log-gammas, which cancels in float32 at large
    theta. Gradients are finite at every count, mu = 0 with a zero count included.

    Args:
      counts: non-negative integers, of any numeric type; not checked here.
      mu: NB mean, >= 0.
      theta: inverse dispersion, > 0.
      pi_logits: zero-inflation logit; -inf means plain NB.

    Returns:
      Log-probabilities in the broadcast shape.
    """
    positive = counts > 0
    # Each branch of `where` gets arguments that are harmless to it, or its gradient is NaN.
    k = jnp.where(positive, counts, 1).astype(jnp.result_type(mu, theta, float))
    mu_positive = jnp.where(positive, mu, 1.0)
    log_nb_zero = -theta * jnp.log1p(mu / theta)
    log_rest = -k * jnp.log1p(theta / mu_positive) - jnp.log(k) - betaln(theta, k)
    zero = jnp.logaddexp(pi_logits, log_nb_zero)
    return jnp.where(positive, log_nb_zero + log_rest, zero) - jax.nn.softplus(pi_logits)


def sample(
    key: jax.Array,
    mu: jax.Array,
    theta: jax.Array,
    pi_logits: jax.Array,
    shape: tuple[int, ...] | None = None,
) -> jax.Array:
    """Draws counts: gamma, then Poisson, then zero inflation.

    Args:
      key: a JAX key of any implementation, typed or raw.
      mu, theta, pi_logits: as in `log_prob`.
      shape: shape of the result, to which the parameters broadcast; their own when None.

    Returns:
      Counts as floats, in `shape`.
    """
    if shape is None:
        shape = jnp.broadcast_shapes(jnp.shape(mu), jnp.shape(theta), jnp.shape(pi_logits))
    key_gamma, key_poisson, key_zero = jax.random.split(_threefry(key), 3)
    dtype = jnp.result_type(mu, theta, float)
    gamma = jax.random.gamma(key_gamma, theta, shape, dtype)
    counts = jax.random.poisson(key_poisson, gamma * (mu / theta), shape)
    inflated = jax.random.bernoulli(key_zero, jax.nn.sigmoid(pi_logits), shape)
    return jnp.where(inflated, 0, counts).astype(dtype)


def _threefry(key: jax.Array) -> jax.Array:
    """A threefry key made from any key; `jax.random.poisson` takes no other kind."""
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def fit(counts: np.ndarray, max_steps: int = 40) -> ZinbParams:
    """Maximum likelihood per gene, all genes at once, on the host in float64 [ours].

    For a fixed theta the best (mu, pi) is exact. Written as a hurdle model the likelihood splits
    into the share of zeros, matched exactly, and the zero-truncated NB of the positive counts,
    whose mean matches theirs. Where that would need pi < 0 the maximum lies at pi = 0, with mu the
    mean of all counts. What is left is one profile over log theta per gene: a grid (the profile
    can have two maxima) and then a golden section search. The counts enter only through the
    histogram of each gene, so the cost hardly grows with the number of spots.

    theta stays in THETA_RANGE (underdispersed, constant and unseen genes get the upper bound,
    close to Poisson), pi_logits above PI_LOGITS_MIN, and mu is at least half a count over all
    spots, which is what an unseen gene gets.

    Args:
      counts: [n, g] raw counts, non-negative integers.
      max_steps: steps of the golden section search, each narrowing log theta by 0.62.

    Returns:
      ZinbParams of float32 NumPy arrays [g].

    Raises:
      InputError: no spots, or counts that are negative, fractional or not finite.
    """
    table = _Histogram.of(counts)
    low, high = np.log(THETA_RANGE)
    grid = np.linspace(low, high, 41)
    profile = np.stack([_profile(table, np.full(table.num_genes, point))[0] for point in grid])
    best = profile.argmax(axis=0)
    step = grid[1] - grid[0]
    left = np.maximum(grid[best] - step, low)
    right = np.minimum(grid[best] + step, high)
    log_theta = _golden_section(lambda x: _profile(table, x)[0], left, right, max_steps)
    log_theta = np.where(table.total > 0, log_theta, high)  # no count says nothing of theta
    _, mu, pi = _profile(table, log_theta)
    with np.errstate(divide="ignore"):
        pi_logits = np.maximum(logit(pi), PI_LOGITS_MIN)
    mu = np.maximum(mu, 0.5 / table.num_spots)
    return ZinbParams(*(a.astype(np.float32) for a in (mu, np.exp(log_theta), pi_logits)))


class _Histogram(NamedTuple):
    """The positive counts of each gene as (value, times) pairs, genes one after another."""

    value: np.ndarray  # [u] distinct positive counts of a gene
    times: np.ndarray  # [u] how many spots have it
    gene: np.ndarray  # [u] which gene
    zeros: np.ndarray  # [g] spots without a count
    total: np.ndarray  # [g] sum of counts
    num_spots: int

    @property
    def num_genes(self) -> int:
        return len(self.zeros)

    @classmethod
    def of(cls, counts: np.ndarray) -> _Histogram:
        counts = np.asarray(counts)
        if counts.ndim != 2 or len(counts) == 0:
            raise InputError(f"ZINB fit: expected counts [n, g] with n > 0, found {counts.shape}.")
        wrong = ~np.isfinite(counts) | (counts < 0) | (counts != np.round(counts))
        if wrong.any():
            raise InputError(
                "ZINB fit: counts must be non-negative integers (raw UMI counts), found "
                f"{counts[wrong][0]:g} in column {int(np.flatnonzero(wrong.any(axis=0))[0])}."
            )
        pairs = [np.unique(column[column > 0], return_counts=True) for column in counts.T]
        lengths = [len(values) for values, _ in pairs]
        empty = [np.zeros(0)]
        return cls(
            value=np.concatenate([values for values, _ in pairs] or empty).astype(np.float64),
            times=np.concatenate([times for _, times in pairs] or empty).astype(np.float64),
            gene=np.repeat(np.arange(len(pairs)), lengths),
            zeros=(counts == 0).sum(axis=0).astype(np.float64),
            total=counts.sum(axis=0, dtype=np.float64),
            num_spots=len(counts),
        )


def _profile(table: _Histogram, log_theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Log-likelihood of each gene at its best (mu, pi) given theta, less a constant.

    Args:
      table: the counts.
      log_theta: [g].

    Returns:
      (log-likelihood [g], mu [g], pi [g]).
    """
    theta, n = np.exp(log_theta), table.num_spots
    positives = n - table.zeros
    mu_hurdle = _untruncated_mean(table.total / np.maximum(positives, 1), theta)
    nb_zero = np.exp(-theta * np.log1p(mu_hurdle / theta))
    inflated = (table.zeros / n > nb_zero) & (positives > 0)
    pi = np.where(inflated, (table.zeros / n - nb_zero) / np.maximum(1 - nb_zero, 1e-300), 0.0)
    pi = np.minimum(pi, 1 - 0.5 / n)
    # A floor far below one count keeps the logarithms finite; 0 * log(floor) is still 0.
    mu = np.maximum(np.where(inflated, mu_hurdle, table.total / n), 1e-12)
    log_nb_zero = -theta * np.log1p(mu / theta)
    theta_of = theta[table.gene]
    with np.errstate(divide="ignore"):
        log_zero = np.logaddexp(np.log(pi), np.log1p(-pi) + log_nb_zero)
    gammas = table.times * (gammaln(table.value + theta_of) - gammaln(theta_of))
    log_likelihood = (
        np.bincount(table.gene, gammas, minlength=table.num_genes)
        - table.total * np.log1p(theta / mu)
        + positives * (log_nb_zero + np.log1p(-pi))
        + table.zeros * log_zero
    )
    return log_likelihood, mu, pi


def _untruncated_mean(truncated: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """The NB mean mu whose mean over positive counts, mu / (1 - P(0)), is `truncated`.

    Bisection in log mu: mu / (1 - P(0)) rises with mu, from 1. Where `truncated` <= 1 there is no
    solution and the answer is (nearly) zero.
    """
    low = np.full_like(theta, np.log(1e-12))
    high = np.log(np.maximum(truncated, 1.0))
    for _ in range(60):
        middle = 0.5 * (low + high)
        mu = np.exp(middle)
        above = mu > -truncated * np.expm1(-theta * np.log1p(mu / theta))
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.exp(0.5 * (low + high))


def _golden_section(function, left: np.ndarray, right: np.ndarray, steps: int) -> np.ndarray:
    """Maximiser of `function` in [left, right], elementwise for all genes."""
    ratio = (np.sqrt(5.0) - 1) / 2
    a, b = right - ratio * (right - left), left + ratio * (right - left)
    at_a, at_b = function(a), function(b)
    for _ in range(steps):
        keep_left = at_a > at_b
        left, right = np.where(keep_left, left, a), np.where(keep_left, b, right)
        inner = np.where(keep_left, right - ratio * (right - left), left + ratio * (right - left))
        value = function(inner)
        a, b = np.where(keep_left, inner, b), np.where(keep_left, a, inner)
        at_a, at_b = np.where(keep_left, value, at_b), np.where(keep_left, at_a, value)
    return 0.5 * (left + right)
