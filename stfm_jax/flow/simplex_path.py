"""Paths from noise to shares of a whole, over the children there are; arrays [N, s].

"dirichlet": straight lines on the simplex from uniform noise. "clr": straight lines between centred
log-ratios, from Gaussian noise; shares of 0 are lifted by half a count first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

PATHS = ("dirichlet", "clr")
PAIRINGS = ("independent", "optimal")
GROUP = 32  # rows among which noise is paired with data
_PSEUDO = 0.5  # counts
_LATE = 1.1  # bounds what is shown at t = 1


def prior(path: str, keys: jax.Array, mask: jax.Array) -> jax.Array:
    """x_0: noise of every row by its own key [N]."""
    s = mask.shape[1]
    if path == "clr":
        return centred(jax.vmap(lambda key: jax.random.normal(key, (s,)))(keys), mask)
    gamma = jax.vmap(lambda key: jax.random.exponential(key, (s,)))(keys)
    gamma = jnp.where(mask, gamma, 0.0)
    return gamma / jnp.sum(gamma, axis=1, keepdims=True)


def target(path: str, ratios: jax.Array, counts: jax.Array, mask: jax.Array) -> jax.Array:
    """x_1 of measured shares of counts [N]."""
    if path == "dirichlet":
        return ratios
    parts = ratios * counts[:, None] + _PSEUDO
    return centred(jnp.log(jnp.where(mask, parts, 1.0)), mask)


def estimate(path: str, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """x_1_hat that a network's logits stand for."""
    if path == "clr":
        return centred(jnp.where(mask, logits, 0.0), mask)
    return shares_of_logits(logits, mask)


def shares(path: str, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Shares that a point of the path stands for."""
    return x if path == "dirichlet" else shares_of_logits(x, mask)


def shown(path: str, x_t: jax.Array, t: jax.Array, mask: jax.Array) -> jax.Array:
    """What a network is shown of a point at times [N]: 0 at t = 0, where it knows nothing.

    It grows as the point tells more: near t = 1 a child's share is almost its x_1.
    """
    if path == "dirichlet":
        x_t = x_t * jnp.sum(mask, axis=1, keepdims=True) - 1.0
    return jnp.where(mask, (t / (_LATE - t))[:, None] * x_t, 0.0)


def paired(x_0: jax.Array, x_1: jax.Array, mask: jax.Array) -> jax.Array:
    """x_0 with rows exchanged so that groups of GROUP are nearest to x_1: optimal transport.

    Rows whose children differ are not exchanged. A row's noise then depends on its data, in a way
    that prediction cannot follow.
    """
    n, s = x_0.shape
    whole = n // GROUP * GROUP
    groups = [a[:whole].reshape(-1, GROUP, s) for a in (x_0, x_1, mask)]

    def one(x_0, x_1, mask):
        cost = jnp.sum((x_0[None] - x_1[:, None]) ** 2, axis=-1)
        cost = cost + 1e3 * jnp.any(mask[None] != mask[:, None], axis=-1)
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros_like(x_0).at[rows].set(x_0[columns])

    exchanged = jax.vmap(one)(*groups).reshape(-1, s)
    return jnp.concatenate([exchanged, x_0[whole:]])


def shares_of_logits(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the children there are; 0 elsewhere."""
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, -1e9), axis=1), 0.0)


def centred(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x with mean 0 over the children there are; 0 elsewhere."""
    mean = jnp.sum(jnp.where(mask, x, 0.0), axis=1, keepdims=True)
    mean = mean / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return jnp.where(mask, x - mean, 0.0)
