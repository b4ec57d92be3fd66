"""A graph variational autoencoder of one sample's spots, fitted to that sample in seconds.

Spots see one another along two kinds of edges, neighbours in space and neighbours in expression,
each with weights of its own [SRast's dual topology]. What a masked spot expresses is reconstructed
from its neighbours [ours].
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

WIDTH = 32
LATENT = 8
STEPS = 300
MASKED = 0.3  # share of spots whose expression is hidden in a step
KL = 1e-3  # weight of the latent's Gaussian prior
LEARNING_RATE = 5e-3


class Topology(NamedTuple):
    """Neighbours of every spot, of the two kinds; rows of the spots."""

    spatial: jax.Array  # [n, k] int32
    expression: jax.Array  # [n, k] int32


class GraphEncoder(nn.Module):
    """Scores [n, c] and their neighbours' -> mean and log variance of the latent, [n, LATENT]."""

    @nn.compact
    def __call__(self, scores: jax.Array, topology: Topology) -> tuple[jax.Array, jax.Array]:
        h = scores
        for _ in range(2):
            around = [jnp.mean(h[kind], axis=1) for kind in topology]
            h = nn.gelu(sum(nn.Dense(WIDTH)(part) for part in (h, *around)))
        return nn.Dense(LATENT)(h), nn.Dense(LATENT, kernel_init=nn.initializers.zeros)(h)


class Decoder(nn.Module):
    """Latent [n, LATENT] -> scores [n, c]."""

    components: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(self.components)(nn.gelu(nn.Dense(WIDTH)(z)))


@jax.jit
def fit(scores: jax.Array, topology: Topology, weight: jax.Array, key: jax.Array) -> dict:
    """Parameters of encoder and decoder for one sample.

    Args:
      scores: [n, c] expression of its spots, of about unit variance; may be padded.
      topology: their neighbours.
      weight: [n] 1 for a spot, 0 for padding.
      key: of initialisation and noise.
    """
    encoder, decoder = GraphEncoder(), Decoder(scores.shape[1])
    params = {
        "encoder": encoder.init(jax.random.fold_in(key, 0), scores, topology),
        "decoder": decoder.init(jax.random.fold_in(key, 1), jnp.zeros((1, LATENT))),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    def loss(params, key):
        key_mask, key_z = jax.random.split(key)
        hidden = jax.random.bernoulli(key_mask, MASKED, (len(scores), 1))
        mean, log_var = encoder.apply(params["encoder"], jnp.where(hidden, 0.0, scores), topology)
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key_z, mean.shape)
        error = jnp.mean((decoder.apply(params["decoder"], z) - scores) ** 2, axis=1)
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_var) - log_var - 1.0, axis=1)
        # Hidden spots say whether neighbours are understood; the others keep what is their own.
        terms = error * jnp.where(hidden[:, 0], 1.0, 0.3) + KL * kl
        return jnp.sum(terms * weight) / jnp.sum(weight)

    def step(carry, i):
        params, state = carry
        gradient = jax.grad(loss)(params, jax.random.fold_in(key, 2 + i))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(STEPS))
    return params


@jax.jit
def encode(params: dict, scores: jax.Array, topology: Topology) -> jax.Array:
    """Mean of the latent, [n, LATENT]."""
    return GraphEncoder().apply(params["encoder"], scores, topology)[0]
