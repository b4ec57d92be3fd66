"""Attention of all rows to all rows of their group, at a cost linear in the rows.

With weights `phi(q_i) . phi(k_j)` in place of a softmax, the sums over j do not depend on i: one
pass over the rows makes them, another reads them. There is no n x n matrix.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

FLOOR = 1e-15  # of the normaliser; its square, which gradients divide by, is a float32 too


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    group: jax.Array | None = None,
    num_groups: int = 1,
    axis: str | None = None,
) -> jax.Array:
    """`phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j)` with `phi = elu + 1`.

    O(n h d c) for each group; memory O(n h (d + c)), whatever the number of groups.

    Args:
      q: [n, h, d].
      k: [n, h, d].
      v: [n, h, c].
      mask: [n] bool, False for rows that nobody looks at, padding.
      group: [n] int32 in [0, num_groups), the slide or stack of a row; None: all rows are of one.
      num_groups: static; rows look at those of their own group alone.
      axis: of the mesh whose devices share the rows, inside a `shard_map`; None: one device.

    Returns:
      [n, h, c]; zeros for masked rows and for those of a group outside the range.

    Raises:
      AssertionError: other shapes, which would broadcast.

    Reference:
      Katharopoulos et al. 2020, arXiv 2006.16236; groups and devices [ours].
    """
    chex.assert_equal_shape([q, k])
    chex.assert_equal_shape_prefix([q, v], 2)
    chex.assert_shape([mask] if group is None else [mask, group], q.shape[:1])
    valid = mask[:, None, None]
    q, k = (_features(jnp.where(valid, x, 0.0)) for x in (q, k))
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)  # the normaliser is a last column
    members = mask[None] if group is None else mask & (group == jnp.arange(num_groups)[:, None])

    # Not kept for the gradient of every group: the rows and the mask spread over them.
    @jax.checkpoint
    def sums_of(member):
        return jnp.einsum("nhd,nhc->hdc", k, jnp.where(member[:, None, None], v, 0.0))

    @jax.checkpoint
    def read(total, part):
        member, sums = part
        here = jnp.einsum("nhd,hdc->nhc", q, sums)
        return total + jnp.where(member[:, None, None], here, 0.0), None

    sums = jax.lax.map(sums_of, members)
    if axis is not None:
        sums = jax.lax.psum(sums, axis)
    total, _ = jax.lax.scan(read, jnp.zeros_like(v), (members, sums))
    return total[..., :-1] / jnp.maximum(total[..., -1:], FLOOR)


def _features(x: jax.Array) -> jax.Array:
    """`elu(x) + 1`, without the cancellation of adding 1 to `exp(x) - 1`."""
    positive = x > 0
    return jnp.where(positive, x + 1.0, jnp.exp(jnp.where(positive, 0.0, x)))
