"""Softmax attention over the neighbours of each receiver, and its sums, in two forms.

Over an edge list by segment operations: the definition, for lists of any length. Over a table with
a row per receiver: the fast form, equal to it (tests/ops/test_attention.py). Padded edges weigh
nothing; a receiver without edges gets zeros.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from stfm_jax.ops.segment import segment_softmax, segment_sum
from stfm_jax.ops.tiles import Edges


def attend(
    logits: jax.Array, values: jax.Array, edge_values: jax.Array, edges: Edges, num_receivers: int
) -> tuple[jax.Array, jax.Array]:
    """Sums of the senders' values and of the edges' own, weighted by the softmax of the logits.

    Args:
      logits: [..., h] over the edges, a list [e] or a table [T, K].
      values: [R, h, c] of the senders.
      edge_values: [..., h, c] of the edges.
      edges: list or table; which of the two decides the form.
      num_receivers: n of a list, T of a table.

    Returns:
      `sum_j A_ij v_j` and `sum_j A_ij F_ij`, each [num_receivers, h, c].

    Raises:
      AssertionError: other shapes, which would broadcast.
    """
    heads, width = values.shape[1:]
    chex.assert_shape(logits, (*edges.senders.shape, heads))
    chex.assert_shape(edge_values, (*edges.senders.shape, heads, width))
    if edges.senders.ndim == 1:
        return _by_segments(logits, values, edge_values, edges, num_receivers)
    return _by_table(logits, values, edge_values, edges)


def _by_segments(logits, values, edge_values, edges, n):
    weights = segment_softmax(logits, edges.receivers, n, edges.mask)[..., None]
    return (
        segment_sum(weights * values[edges.senders], edges.receivers, n),
        segment_sum(weights * edge_values, edges.receivers, n),
    )


def _by_table(logits, values, edge_values, edges):
    mask = edges.mask[..., None]
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(mask, logits, -1e30), axis=1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, logits - peak, 0.0)), 0.0)
    total = jnp.sum(weights, axis=1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1.0))[..., None]
    sent = values[edges.senders]
    # Written out over the table's columns: XLA's CPU code reduces a middle axis slowly.
    columns = range(logits.shape[1])
    return (
        sum(weights[:, j] * sent[:, j] for j in columns),
        sum(weights[:, j] * edge_values[:, j] for j in columns),
    )
