"""The 3D-consistent prior of HoloTea: x_0 from `rho * Empirical + (1 - rho) * ZINB` [ours].

Empirical: the expression of one of the spots retrieved for a spot on neighbouring sections, chosen
by `w_ij exp(-|dz| / l)`; all genes come from the same one, so their structure comes along. ZINB:
`mu` and `pi` of a small network on what a spot and its neighbours look like, `theta` per gene,
fitted by its own likelihood before the flow and fixed from then on. A spot without measured
neighbours draws from the ZINB alone. docs/methods.md section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from stfm_jax.flow.priors import NUM_SCALES
from stfm_jax.ops import zinb
from stfm_jax.ops.context import Context, known_weight, weighted_mean

HIDDEN = 64  # of the network
STEPS, SPOTS_PER_STEP = 400, 2048  # of its fit
INPUT_DROPOUT, INPUT_NOISE = 0.5, 0.5  # of its fit: some hundred spots are all there may be
GRID = 96  # of mu, over which moments are tabled
LOG_MU = (-6.0, 8.0)  # range of log mu


class ContextPrior(NamedTuple):
    """A pytree of arrays, so that one trace serves every fold."""

    network: dict  # parameters: w1 [c, HIDDEN], b1, w2 [HIDDEN, 2 g], b2
    theta: jax.Array  # [g] inverse dispersion
    means: jax.Array  # [g, GRID] E[x_0] of the NB by log mu
    scales: jax.Array  # [NUM_SCALES] quantiles of 10,000 / library size; ones for log1p
    rho: jax.Array  # [] share of the empirical prior where there is one
    decay: jax.Array  # [] l, in units of spot spacing


@jax.jit
def inputs(features: jax.Array, context: Context, mean: jax.Array, std: jax.Array) -> jax.Array:
    """What the network sees of spots: own and retrieved image features, measured neighbours.

    Args:
      features: [n, p] own principal components.
      context: of the spots; p components too.
      mean: [g] of the genes.
      std: [g].

    Returns:
      [n, 2 p + g + 1].
    """
    weight = known_weight(context)
    known = jnp.sum(weight, axis=1, keepdims=True)
    expr = jnp.where(known > 0, (weighted_mean(weight, context.expr) - mean) / std, 0.0)
    around = weighted_mean(context.weight, context.features)
    return jnp.concatenate([features, around, expr, known], axis=-1)


def parameters(prior: ContextPrior, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mu and pi_logits, each [n, g], of inputs [n, c]."""
    return _apply(prior.network, x)


def _apply(network: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = jax.nn.silu(x @ network["w1"] + network["b1"])
    log_mu, pi_logits = jnp.split(hidden @ network["w2"] + network["b2"], 2, axis=-1)
    return jnp.exp(jnp.clip(log_mu, *LOG_MU)), pi_logits


def mean(prior: ContextPrior, x: jax.Array, context: Context) -> jax.Array:
    """E[x_0] [n, g] of spots with inputs x [n, c]."""
    mu, pi_logits = parameters(prior, x)
    grid = jnp.linspace(*LOG_MU, GRID)
    at = jax.vmap(lambda log_mu, table: jnp.interp(log_mu, grid, table), (1, 0), 1)
    from_zinb = jax.nn.sigmoid(-pi_logits) * at(jnp.log(mu), prior.means)
    weight = _decayed(prior, context)
    rho = _rho(prior, weight)
    return rho * weighted_mean(weight, context.expr) + (1.0 - rho) * from_zinb


def sample(prior: ContextPrior, keys: jax.Array, x: jax.Array, context: Context) -> jax.Array:
    """Draws x_0 [n, g] with a key per spot, keys [n]; x [n, c] are the spots' inputs."""
    mu, pi_logits = parameters(prior, x)
    weight = _decayed(prior, context)
    rho = _rho(prior, weight)[:, 0]

    def one(key, mu, pi_logits, weight, expr, rho):
        which, scale, neighbour, counts = jax.random.split(key, 4)
        drawn = zinb.sample(counts, mu, prior.theta, pi_logits)
        drawn = jnp.log1p(drawn * jax.random.choice(scale, prior.scales))
        chosen = jax.random.categorical(neighbour, jnp.log(jnp.maximum(weight, 1e-30)))
        return jnp.where(jax.random.uniform(which) < rho, expr[chosen], drawn)

    return jax.vmap(one)(keys, mu, pi_logits, weight, context.expr, rho)


@jax.jit
def deviation(prior: ContextPrior, keys: jax.Array, x: jax.Array, context: Context) -> jax.Array:
    """Deviation of draws from their spots' means, [n, g]; as `sample` less `mean`."""
    return sample(prior, keys, x, context) - mean(prior, x, context)


def _decayed(prior: ContextPrior, context: Context) -> jax.Array:
    """`w_ij exp(-|dz| / l)` [n, K], 0 where expression is unknown."""
    return known_weight(context) * jnp.exp(-context.distance[..., 1] / prior.decay)


def _rho(prior: ContextPrior, weight: jax.Array) -> jax.Array:
    return jnp.where(jnp.sum(weight, axis=1, keepdims=True) > 0, prior.rho, 0.0)


def fit(
    x: np.ndarray,
    known: slice,
    counts: np.ndarray,
    library: np.ndarray | None,
    start: zinb.ZinbParams,
    rho: float,
    decay: float,
    seed: int = 0,
) -> ContextPrior:
    """Fits the ZINB's network to the training spots by maximum likelihood.

    Half of the spots of a step are shown as if none of their neighbours had been measured, so that
    the network serves both.

    Args:
      x: [n, c] of `inputs`.
      known: columns of x that tell of neighbours' expression.
      counts: [n, g] raw counts.
      library: [n] library sizes for `log1p_cp10k`, None for `log1p`.
      start: per-gene fit to the same counts, which the network starts from.
      rho: share of the empirical prior.
      decay: l, in units of spot spacing.
      seed: of the network's start, and of what is hidden in which step.
    """
    g = counts.shape[1]
    rng = np.random.default_rng(seed)
    params = {
        "network": {
            "w1": rng.normal(size=(x.shape[1], HIDDEN)) / np.sqrt(x.shape[1]),
            "b1": np.zeros(HIDDEN),
            "w2": np.zeros((HIDDEN, 2 * g)),
            "b2": np.concatenate([np.log(np.maximum(start.mu, 1e-6)), start.pi_logits]),
        },
        "log_theta": np.log(start.theta),
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    hidden = np.ones(x.shape[1], np.float32)
    hidden[known] = 0.0
    key = jax.random.key(seed)
    params = _fit(params, jnp.asarray(x), jnp.asarray(hidden), jnp.asarray(counts), key)
    theta = np.exp(np.asarray(params["log_theta"], np.float64))
    middles = (np.arange(NUM_SCALES) + 0.5) / NUM_SCALES
    scales = np.ones(NUM_SCALES) if library is None else np.quantile(1e4 / library, middles)
    return ContextPrior(
        network=jax.tree.map(np.asarray, params["network"]),
        theta=theta.astype(np.float32),
        means=_mean_table(theta, scales).astype(np.float32),
        scales=scales.astype(np.float32),
        rho=np.float32(rho),
        decay=np.float32(decay),
    )


@jax.jit
def _fit(params, x, hidden, counts, key):
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=0.01)
    low, high = np.log(zinb.THETA_RANGE)

    def loss(params, x, counts):
        mu, pi_logits = _apply(params["network"], x)
        theta = jnp.exp(jnp.clip(params["log_theta"], low, high))
        return -jnp.mean(zinb.log_prob(counts, mu, theta, pi_logits))

    def step(state, key):
        params, moments = state
        rows, masks, drops, noise = jax.random.split(key, 4)
        at = jax.random.choice(rows, len(x), (min(SPOTS_PER_STEP, len(x)),), replace=False)
        shown = x[at] + INPUT_NOISE * jax.random.normal(noise, (len(at), x.shape[1]))
        keep = jax.random.bernoulli(drops, 1.0 - INPUT_DROPOUT, shown.shape)
        shown = jnp.where(keep, shown / (1.0 - INPUT_DROPOUT), 0.0)
        alone = jax.random.bernoulli(masks, 0.5, (len(at), 1))
        shown = jnp.where(alone, shown * hidden, shown)
        updates, moments = optimizer.update(
            jax.grad(loss)(params, shown, counts[at]), moments, params
        )
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(key, STEPS)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params | {"log_theta": jnp.clip(params["log_theta"], low, high)}


def _mean_table(theta: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """E[log1p(scale * NB(mu, theta))] [g, GRID], over the scales and the grid of log mu.

    By quadrature over quantiles of the NB, in place of a sum over its whole support.
    """
    mu = np.exp(np.linspace(*LOG_MU, GRID))
    middles = (np.arange(256) + 0.5) / 256
    table = np.empty((len(theta), GRID))
    for i, one in enumerate(theta):
        quantiles = stats.nbinom.ppf(middles[:, None], one, (one / (one + mu))[None, :])
        table[i] = np.log1p(quantiles[..., None] * scales).mean(axis=(0, 2))
    return table
