"""The straight path between prior draw and data, and the times a solver visits.

t = 0 is the prior draw x_0, t = 1 the data x_1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def interpolate(x_0: jax.Array, x_1: jax.Array, t: jax.Array) -> jax.Array:
    """`x_t = (1 - t) x_0 + t x_1`; t broadcasts against x [n, g]."""
    return (1.0 - t) * x_0 + t * x_1


def velocity(x_1_hat: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """Velocity `(x_1_hat - x_t) / (1 - t)` of a network that predicts the data; t < 1."""
    return (x_1_hat - x_t) / (1.0 - t)


def uniform_times(evaluations: int) -> jax.Array:
    """Equal steps of t, [evaluations + 1] from 0 to 1 [STFlow]."""
    return jnp.linspace(0.0, 1.0, evaluations + 1)


def angular_times(evaluations: int) -> jax.Array:
    """Equal steps of the angle atan(t / (1 - t)), [evaluations + 1] from 0 to 1 [ours].

    In that angle the velocity of the Gaussian path's residual is bounded (see flow.gaussian).
    """
    angle = jnp.linspace(0.0, 1.0, evaluations + 1) * jnp.pi / 2
    return jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle))
