"""Prior draws x_0 and their moments.

Counts of a ZINB with fixed per-gene parameters have a fixed distribution per gene, so they are
drawn by inverting its tabulated distribution function: a uniform and a binary search each, far
cheaper than gamma and Poisson. Draws are keyed to a spot's place in the input, so neither padding
nor reordering changes them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

PRIORS = ("zinb_fit", "zinb_scalar", "gaussian", "zero")
NUM_SCALES = 64
MIN_TABLE = 4096  # counts tabled at least, so that folds share a shape, and a trace
MOST_TABLE = 1 << 16  # counts tabled one by one; of larger ones some, in steps below 0.1 %
TAIL = 1e-7  # probability beyond the table, below the resolution of a float32 uniform


class Prior(NamedTuple):
    """Per-gene prior; a pytree of arrays, so that one trace serves every fold."""

    cdf: jax.Array  # [g, K] distribution function of the counts; all ones where unused
    mean: jax.Array  # [g] of x_0
    covariance: jax.Array  # [g, g] of x_0 over the genes of a spot
    gaussian: jax.Array  # [] 1.0 if x_0 is drawn from N(mean, diagonal) instead of the table
    scales: jax.Array  # [q] quantiles of 10,000 / library size; ones where counts are not scaled
    counts: jax.Array | None = None  # [K] that the table is of; None: 0..K-1


def zinb_prior(
    mu: np.ndarray,
    theta: np.ndarray,
    pi_logits: np.ndarray,
    library: np.ndarray | None = None,
) -> Prior:
    """Prior whose x_0 is the log-normalised draw of a ZINB.

    Args:
      mu: [g] mean of the NB component.
      theta: [g] inverse dispersion.
      pi_logits: [g] logit of the zero inflation.
      library: [n] library sizes of the training spots for `log1p_cp10k`, None for `log1p`. A draw
        takes one at random: at prediction nobody knows the slide's own.
    """
    mu, theta, pi_logits = (np.asarray(a, dtype=np.float64) for a in (mu, theta, pi_logits))
    nb = stats.nbinom(theta[:, None], (theta / (theta + mu))[:, None])
    largest = int(np.max(nb.ppf(1.0 - TAIL)))
    support = _tabled(largest)
    pi = 1.0 / (1.0 + np.exp(-pi_logits))[:, None]
    cdf = pi + (1.0 - pi) * nb.cdf(support[None, :])
    mass = np.diff(cdf, axis=1, prepend=0.0)
    mass /= mass.sum(axis=1, keepdims=True)
    middles = (np.arange(NUM_SCALES) + 0.5) / NUM_SCALES
    scales = np.ones(NUM_SCALES) if library is None else np.quantile(1e4 / library, middles)
    values = np.log1p(support[None, :] * scales[:, None])  # [l, K]
    # Genes of a spot share its library size: independent given it, correlated over it.
    means = mass @ values.T  # [g, l]
    variances = mass @ (values**2).T - means**2
    covariance = np.cov(means, bias=True) + np.diag(variances.mean(axis=1))
    return Prior(
        cdf=cdf.astype(np.float32),
        mean=means.mean(axis=1).astype(np.float32),
        covariance=covariance.astype(np.float32),
        gaussian=np.float32(0.0),
        scales=scales.astype(np.float32),
        counts=None if len(support) <= MOST_TABLE else support.astype(np.float32),
    )


def _tabled(largest: int) -> np.ndarray:
    """Counts whose distribution function is tabled, up to one at least."""
    if largest + 2 <= MOST_TABLE:
        return np.arange(max(MIN_TABLE, 1 << int(np.ceil(np.log2(largest + 2)))))
    steps = int(np.ceil(np.log(largest / MOST_TABLE) / np.log1p(1e-3))) + 1
    beyond = np.geomspace(MOST_TABLE, largest, max(steps, 2)).round().astype(np.int64)
    return np.concatenate([np.arange(MOST_TABLE), np.unique(beyond)])


def zinb_scalar_prior(num_genes: int, library: np.ndarray | None = None) -> Prior:
    """The published one: total_count 1, logits 0.1, no zero inflation logit; same for all genes.

    mu = 1.105, theta = 1, pi = 0.5.
    """
    ones = np.ones(num_genes)
    return zinb_prior(np.exp(0.1) * ones, ones, 0.0 * ones, library)


def gaussian_prior(mean: np.ndarray, std: np.ndarray) -> Prior:
    """N(mean [g], std [g]^2); std = 0 gives the constant prior."""
    return Prior(
        cdf=np.ones((len(mean), MIN_TABLE), np.float32),
        mean=np.asarray(mean, np.float32),
        covariance=np.diag(np.square(std)).astype(np.float32),
        gaussian=np.float32(1.0),
        scales=np.ones(NUM_SCALES, np.float32),
    )


def spot_keys(key: jax.Array, slide: jax.Array, place: jax.Array) -> jax.Array:
    """One key per spot from its slide's index [n] and its place in the slide's input [n]."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(jax.random.fold_in)(fold(key, slide), place)


def sample(prior: Prior, keys: jax.Array) -> jax.Array:
    """Draws x_0 [n, g] with a key per spot, keys [n]."""
    num_genes = prior.mean.shape[0]
    u = jax.vmap(lambda key: jax.random.uniform(key, (num_genes + 1,)))(keys)
    which, u = (u[:, -1] * prior.scales.shape[0]).astype(jnp.int32), u[:, :-1]
    search = jax.vmap(lambda cdf, u: jnp.searchsorted(cdf, u, side="right"), (0, 1), 1)
    found = search(prior.cdf, u)
    counts = found.astype(jnp.float32) if prior.counts is None else prior.counts[found]
    from_counts = jnp.log1p(counts * prior.scales[which][:, None])
    std = jnp.sqrt(jnp.diagonal(prior.covariance))
    normal = prior.mean + std * jax.scipy.special.ndtri(jnp.clip(u, 1e-7, 1.0 - 1e-7))
    return jnp.where(prior.gaussian > 0, normal, from_counts)
