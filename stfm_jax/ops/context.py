"""What a spot sees of other sections: the spots retrieved for it, as a table [n, K].

Rows belong to the spot that looks, so tiles, devices and padding treat them as its features.
How spots are retrieved is `data.retrieval`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Context(NamedTuple):
    """K retrieved spots of each of n spots; a pytree of arrays."""

    features: jax.Array  # [n, K, p] image features of the retrieved spot
    distance: jax.Array  # [n, K, 2] in the plane and along z, >= 0, in units of spot spacing
    weight: jax.Array  # [n, K] of the retrieval, sums to 1; 0 for padding
    known: jax.Array  # [n, K] bool, whether its expression was measured and may be seen
    expr: jax.Array  # [n, K, g] measured expression, 0 where unknown
    residual: jax.Array  # [n, K, g] its difference from an anchor that saw neither, 0 where unknown


def weighted_mean(weight: jax.Array, values: jax.Array) -> jax.Array:
    """Mean [n, c] over K of values [n, K, c] with weights [n, K] >= 0; 0 where all are 0."""
    total = jnp.sum(weight, axis=1, keepdims=True)
    return jnp.einsum("nk,nkc->nc", weight / jnp.where(total > 0, total, 1.0), values)


def known_weight(context: Context) -> jax.Array:
    """The retrieval's weights [n, K] of those whose expression is known, 0 for the others."""
    return context.weight * context.known


def without_expression(context: Context, keep: jax.Array | bool = False) -> Context:
    """The context as if no neighbour had been measured; as it is where `keep` ([] bool)."""
    return context._replace(
        known=context.known & keep,
        expr=jnp.where(keep, context.expr, 0.0),
        residual=jnp.where(keep, context.residual, 0.0),
    )
