"""Segment operations: reductions over the edges of each receiver.

The clearest definition of sparse attention, and it carries neighbour lists of varying length.
Masked (padded) edges take no part. Edges must be sorted by receiver.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def segment_sum(values: jax.Array, receivers: jax.Array, num_segments: int) -> jax.Array:
    """Sum of the edge values [e, ...] of each receiver, [num_segments, ...]."""
    return jax.ops.segment_sum(values, receivers, num_segments, indices_are_sorted=True)


def segment_softmax(
    logits: jax.Array, receivers: jax.Array, num_segments: int, mask: jax.Array
) -> jax.Array:
    """Softmax over the edges of each receiver.

    Args:
      logits: [e, h] one logit per edge and head.
      receivers: [e] ascending receiver of each edge.
      num_segments: number of receivers.
      mask: [e] bool, False for padded edges.

    Returns:
      [e, h] weights: 0 on masked edges; those of a receiver sum to 1 (to 0 if all are masked).
    """
    logits = jnp.where(mask[:, None], logits, -jnp.inf)
    peak = jax.ops.segment_max(logits, receivers, num_segments, indices_are_sorted=True)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0.0))
    weights = jnp.exp(logits - peak[receivers])
    total = segment_sum(weights, receivers, num_segments)
    return weights / jnp.where(total > 0, total, 1.0)[receivers]
