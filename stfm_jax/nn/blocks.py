"""The spatial attention block of STFlow, on an edge list.

Wide products are done per spot, not per edge: the first linear map of the attention MLP acts on a
concatenation, so it splits exactly into a part for the receiver, a part for the sender, a part for
the expression and a small part for the edge's frame features.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.mlp import ExpressionHead, LayerNorm, SwiGLU, gate
from stfm_jax.ops.segment import segment_softmax, segment_sum

FRAMES = ("blended", "pca", "radial")


class Edges(NamedTuple):
    """Padded edge list of a batch with its invariant geometry (see ops.frames)."""

    senders: jax.Array  # [e] int32
    receivers: jax.Array  # [e] int32, ascending
    mask: jax.Array  # [e] bool, False for padding
    pca: jax.Array  # [e, 2]
    edge: jax.Array  # [e, 2]
    distance: jax.Array  # [e]
    blend: jax.Array  # [e]


class FrameFeatures(nn.Module):
    """F_ij [e, width]: the frame-averaged SwiGLU_{3 -> 128 -> width} of every edge.

    `frames`: "pca" is the published average over the four sign flips of the PCA axes; "blended"
    fades it into the edge-aligned frame where the PCA is degenerate [ours]; "radial" sees the
    distance alone (ablation). W2 commutes with the averages and is applied once.
    """

    width: int
    frames: str = "blended"

    @nn.compact
    def __call__(self, edges: Edges) -> jax.Array:
        kernel = self.param("w1_kernel", nn.initializers.lecun_normal(), (3, 128))
        bias = self.param("w1_bias", nn.initializers.zeros, (128,))
        norm = LayerNorm(name="norm")
        radial = edges.distance[:, None] * kernel[2] + bias

        def average(offset, signs):
            along, across = offset[:, :1] * kernel[0], offset[:, 1:] * kernel[1]
            return sum(norm(gate(radial + a * along + b * across)) for a, b in signs) / len(signs)

        if self.frames == "radial":
            hidden = norm(gate(radial))
        else:
            hidden = average(edges.pca, ((1, 1), (1, -1), (-1, 1), (-1, -1)))
        if self.frames == "blended":
            aligned = average(edges.edge, ((1, 1), (1, -1)))
            blend = edges.blend[:, None]
            hidden = blend * hidden + (1.0 - blend) * aligned
        return nn.Dense(self.width, name="w2")(hidden)


class AttentionLogits(nn.Module):
    """Logit of each edge and head: `SwiGLU_{3 d_h + g -> 128 -> 1}([q_i, k_j, F_ij, y_j - y_i])`.

    The MLP is shared by the heads. W1 is one kernel, used in four row blocks.
    """

    hidden: int = 128

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, frames: jax.Array, y: jax.Array, edges: Edges
    ) -> jax.Array:
        """q, k [n, h, d_head], frames [e, h, d_head], y [n, g] -> [e, h]."""
        d = q.shape[-1]
        rows = 3 * d + y.shape[-1]
        kernel = self.param("w1_kernel", nn.initializers.lecun_normal(), (rows, self.hidden))
        bias = self.param("w1_bias", nn.initializers.zeros, (self.hidden,))
        w_q, w_k, w_f, w_y = jnp.split(kernel, (d, 2 * d, 3 * d))
        y_part = (y @ w_y)[:, None, :]
        receiver_part = q @ w_q - y_part + bias
        sender_part = k @ w_k + y_part
        hidden = receiver_part[edges.receivers] + sender_part[edges.senders] + frames @ w_f
        return nn.Dense(1, name="w2")(LayerNorm(name="norm")(gate(hidden)))[..., 0]


class SpatialBlock(nn.Module):
    """Neighbour attention, feed-forward and expression head of one STFlow layer.

    Returns the new tokens [n, d] and the head's expression [n, g].
    """

    heads: int
    num_genes: int
    dropout: float
    zero_init: bool

    @nn.compact
    def __call__(
        self, h: jax.Array, y: jax.Array, frames: jax.Array, edges: Edges, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """h [n, d], y [n, g], frames [e, d]."""
        n, d = h.shape

        def split_heads(x):
            return x.reshape(*x.shape[:-1], self.heads, d // self.heads)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        qkv = nn.Dense(3 * d, name="qkv")(LayerNorm(name="norm")(h))
        q, k, v = (split_heads(x) for x in jnp.split(qkv, 3, axis=-1))
        frames = split_heads(frames)
        logits = AttentionLogits(name="logits")(q, k, frames, y, edges)
        weights = segment_softmax(logits, edges.receivers, n, edges.mask)[..., None]
        from_values = segment_sum(weights * v[edges.senders], edges.receivers, n)
        from_frames = segment_sum(weights * frames, edges.receivers, n)
        message = jnp.concatenate([from_values.reshape(n, d), from_frames.reshape(n, d)], axis=-1)
        h = h + drop(SwiGLU(d, d, name="mix")(message))
        h = h + drop(SwiGLU(4 * d, d, name="feed_forward")(h))
        return h, ExpressionHead(self.num_genes, self.zero_init, name="head")(h)
