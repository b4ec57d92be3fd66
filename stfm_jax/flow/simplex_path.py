"""Paths from noise to shares of a whole, over the children there are; arrays [N, s].

"dirichlet": straight lines on the simplex. Their noise is "uniform" on it, as published, or
"fitted": Dirichlet about the mean split, as wide as measured shares lie about it in training
samples [ours]. "clr": straight lines between centred log-ratios, from Gaussian noise; shares of 0
are lifted by half a count first.

What means and spreads of both ends say of a path is known in closed form, and the network adds to
it: were both ends Gaussian, `linear` would be E[x_1 | x_t] and `step` exact with any number of
steps (as `flow.gaussian`, here with one spread for all children). From fitted noise to data that
are as it says, points stand still.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

PATHS = ("dirichlet", "clr")
NOISES = ("fitted", "uniform")
PAIRINGS = ("independent", "optimal")
GROUP = 32  # rows among which noise is paired with data
_PSEUDO = 0.5  # counts
_LEAST = 0.02  # precision of noise
_FLOOR = 1e-3  # of a share whose logarithm is taken
_LATE = 1.1  # bounds what is shown at t = 1


class Spread(NamedTuple):
    """Spread of measured shares about their mean, over training rows."""

    rate: jax.Array  # [2] log of a: at no counts, and its slope along log1p of them; `precision`
    logs: jax.Array  # [] variance of centred log-ratios


class Line(NamedTuple):
    """Means and spreads of both ends of every row's path."""

    logits: jax.Array  # [N, s] of the mean split
    mean_0: jax.Array  # [N, s] of the noise
    mean_1: jax.Array  # [N, s] of the data
    precision: jax.Array  # [N] of the noise: the sum of its Dirichlet's parameters
    ratio: jax.Array  # [N] variance of the data over that of the noise


def line(
    path: str, noise: str, logits: jax.Array, counts: jax.Array, spread: Spread, mask: jax.Array
) -> Line:
    """Line of rows of so many counts [N] whose mean split is a softmax of logits [N, s]."""
    if path == "clr":
        one = jnp.ones_like(counts)
        return Line(logits, jnp.zeros_like(logits), centred(logits, mask), one, spread.logs * one)
    mean, known = shares_of_logits(logits, mask), precision(spread, counts)
    if noise == "fitted":
        return Line(logits, mean, mean, known, jnp.ones_like(known))
    number = jnp.sum(mask, axis=1)
    ratio = (number + 1.0) / (known + 1.0)
    return Line(logits, mask / number[:, None], mean, number.astype(known.dtype), ratio)


def precision(spread: Spread, counts: jax.Array) -> jax.Array:
    """Precision [N] of a Dirichlet whose variance is that of measured shares of counts [N].

    They vary by their rates, as a Dirichlet of precision a does, and by the throw of their counts:
    1 / (precision + 1) = (1 / a + 1 / counts) / (1 / a + 1). Of one count all is on one child.
    """
    inverse = jnp.exp(-spread.rate[0] - spread.rate[1] * jnp.log1p(counts))  # 0 where a is huge
    varied = (inverse + 1.0 / jnp.maximum(counts, 1.0)) / (inverse + 1.0)
    return jnp.maximum(1.0 / varied - 1.0, _LEAST)


def prior(path: str, keys: jax.Array, line: Line, mask: jax.Array) -> jax.Array:
    """x_0: noise of every row by its own key [N]."""
    s = mask.shape[1]
    if path == "clr":
        return centred(jax.vmap(lambda key: jax.random.normal(key, (s,)))(keys), mask)
    parameters = jnp.where(mask, line.precision[:, None] * line.mean_0, 1.0)
    return shares_of_logits(jax.vmap(jax.random.loggamma)(keys, parameters), mask)


def linear(line: Line, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """E[x_1 | x_t] at times t [N], were both ends Gaussian."""
    t, ratio = t[:, None], line.ratio[:, None]
    gain = t * ratio / ((1.0 - t) ** 2 + t**2 * ratio)
    return line.mean_1 + gain * (x_t - _mean(line, t))


def step(
    line: Line, x_t: jax.Array, x_1_hat: jax.Array, t: jax.Array, after: jax.Array
) -> jax.Array:
    """x at time after [] from x_t at t []: the linear part exactly, the rest by a step of Euler."""
    root = jnp.sqrt(line.ratio)[:, None]
    rest = x_1_hat - linear(line, x_t, jnp.full(len(x_t), t))
    size, size_after = (jnp.hypot(1.0 - u, u * root) for u in (t, after))
    turn = jnp.arctan2(root * after, 1.0 - after) - jnp.arctan2(root * t, 1.0 - t)
    kept = _mean(line, after) + size_after / size * (x_t - _mean(line, t))
    return kept + rest * size * size_after * turn / (root * (1.0 - t))


def _mean(line: Line, t: jax.Array) -> jax.Array:
    return (1.0 - t) * line.mean_0 + t * line.mean_1


def target(path: str, ratios: jax.Array, counts: jax.Array, mask: jax.Array) -> jax.Array:
    """x_1 of measured shares of counts [N]."""
    if path == "dirichlet":
        return ratios
    parts = ratios * counts[:, None] + _PSEUDO
    return centred(jnp.log(jnp.where(mask, parts, 1.0)), mask)


def logits_of(path: str, x_1_hat: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits that stand for x_1_hat."""
    if path == "clr":
        return x_1_hat
    return jnp.where(mask, jnp.log(jnp.maximum(x_1_hat, _FLOOR)), 0.0)


def estimate(path: str, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """x_1_hat that a network's logits stand for."""
    if path == "clr":
        return centred(jnp.where(mask, logits, 0.0), mask)
    return shares_of_logits(logits, mask)


def shares(path: str, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Shares that a point at the end of the path stands for; steps may leave the simplex."""
    if path == "clr":
        return shares_of_logits(x, mask)
    x = jnp.where(mask, jnp.maximum(x, 0.0), 0.0)
    return x / jnp.sum(x, axis=1, keepdims=True)


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
