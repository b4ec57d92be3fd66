"""Draws of all spots of a batch together: what they are made of, and how.

STFlow makes the parts from a slide alone, HoloTea (`models.holotea`) with what a stack adds to each
of them; the rest is the same. N rows of a padded batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stfm_jax.data.batching import Batch
from stfm_jax.flow import gaussian, priors
from stfm_jax.flow.path import interpolate


class Parts(NamedTuple):
    """What draws of a batch are made of."""

    path: gaussian.GaussianPath  # moments of prior and residual
    anchor: jax.Array  # [N, g] the regression the model stands on
    said: jax.Array | None  # [N, g] by the image tower, in standard deviations about genes' means
    centre: jax.Array  # [N, g] what draws are centred on
    network: Callable[[], Callable]  # () -> (state [N, g], t) -> output [N, g]
    prior: Callable[[jax.Array], jax.Array]  # key -> x_0 [N, g]


def errors(
    flow: Any, parts: Parts, arrays: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """x_1_hat at a random time, and the terms of the loss; each [N, g].

    Args:
      flow: an `STFlow`.
      parts: of the batch, with the noise of `noise_keys` in training.
      arrays: fitted ones, with the genes' moments.
      batch: with the targets.
      key: of time and prior.
    """
    key_t, key_0, _ = jax.random.split(key, 3)
    per_slide = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_t, batch.slide)
    t = jax.vmap(jax.random.uniform)(per_slide)[:, None]
    path, anchor, network = parts.path, parts.anchor, parts.network()
    x_t = interpolate(parts.prior(key_0), batch.expr, t)
    if flow.gaussian_skip:
        z = gaussian.whiten(path, x_t, anchor, t)
        x_1_hat = gaussian.posterior(path, z, network(z, t), anchor, t)
    else:
        x_1_hat = anchor + network(x_t, t)
    error = flow.time_weight(path, t) * (x_1_hat - batch.expr) ** 2
    if parts.said is not None:
        error = error + image_errors(parts.said, arrays, batch)
    return x_1_hat, error


def image_errors(said: jax.Array, arrays: Any, batch: Batch) -> jax.Array:
    """The image tower's terms of the loss [N, g]."""
    target = (batch.expr - arrays.gene_mean) / arrays.gene_std
    return (said - target) ** 2


def noise_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """Keys [N] of the network's noise; the third part of the key, whose others `errors` takes."""
    return priors.spot_keys(jax.random.split(key, 3)[2], batch.slide, batch.place)


def posterior_mean(flow: Any, parts: Parts, key: jax.Array, draws: int) -> jax.Array:
    """E[x_1 | features] [N, g]: x_1_hat at t = 0, averaged over prior draws.

    With an image tower the gate is closed at t = 0, and x_1_hat is the centre whatever the draw.
    """
    if flow.mean_is_closed:
        return flow.supported(parts.centre)
    network = parts.network()

    def one(key):
        return flow.first_estimate(network, parts.path, parts.prior(key), parts.centre)

    return flow.supported(jnp.mean(jax.lax.map(one, draw_keys(key, draws)), axis=0))


def sample(flow: Any, parts: Parts, key: jax.Array, draws: int) -> jax.Array:
    """Joint draws of x_1 given the features, [draws, N, g]."""
    network = parts.network()

    def one(key):
        return flow.draw(network, parts.path, parts.prior(key), parts.centre)

    return jax.lax.map(one, draw_keys(key, draws))


def masked_sum(error: jax.Array, spot_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of error [N, g] over unmasked spots [N], and the number of terms."""
    mask = spot_mask[:, None]
    return jnp.sum(jnp.where(mask, error, 0.0)), jnp.sum(mask) * error.shape[1]


def draw_keys(key: jax.Array, draws: int) -> jax.Array:
    """A key for each draw; draw i has the same however many are taken."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(draws))
