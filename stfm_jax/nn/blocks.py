"""The spatial attention block of STFlow, for the receivers of one tile (or of a whole slide).

Wide products are done per spot, not per edge: the first linear map of the attention MLP acts on a
concatenation, so it splits exactly into a part for the receiver, a part for the sender, a part for
the expression and a small part for the edge's frame features.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.mlp import (
    Dense,
    ExpressionHead,
    LayerNorm,
    NormedProjection,
    SwiGLU,
    dropout,
    gate,
    matmul,
)
from stfm_jax.ops.attention import attend
from stfm_jax.ops.frames import EdgeGeometry
from stfm_jax.ops.tiles import Edges

FRAMES = ("blended", "pca", "radial")
LOGIT_WIDTH = 128  # of the attention's MLP [STFlow]


class EdgeFeatures(NamedTuple):
    """What depends on an edge alone, so is the same in every evaluation of a slide."""

    frames: jax.Array  # [..., d] over the edges, F_ij
    hidden: jax.Array | None = None  # [..., h, LOGIT_WIDTH] its part of the logits, if kept too


def logits_of_frames(kernel: jax.Array, frames: jax.Array, heads: int, dtype: str) -> jax.Array:
    """`F_ij W_F` [..., h, LOGIT_WIDTH] of frames [..., d]; kernel: W1 of `AttentionLogits`."""
    d = frames.shape[-1] // heads
    frames = frames.reshape(*frames.shape[:-1], heads, d)
    return matmul(frames, kernel[2 * d : 3 * d], dtype)


class FrameFeatures(nn.Module):
    """F_ij [..., width]: the frame-averaged SwiGLU_{3 -> 128 -> width} of every edge.

    `frames`: "pca" is the published average over the four sign flips of the PCA axes; "blended"
    fades it into the edge-aligned frame where the PCA is degenerate [ours]; "radial" sees the
    distance alone (ablation). W2 commutes with the averages and is applied once.
    """

    width: int
    frames: str = "blended"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, geometry: EdgeGeometry) -> jax.Array:
        kernel = self.param("w1_kernel", nn.initializers.lecun_normal(), (3, 128))
        bias = self.param("w1_bias", nn.initializers.zeros, (128,))
        norm = LayerNorm(name="norm")
        radial = geometry.distance[..., None] * kernel[2] + bias

        def average(offset, signs):
            along, across = offset[..., :1] * kernel[0], offset[..., 1:] * kernel[1]
            return sum(norm(gate(radial + a * along + b * across)) for a, b in signs) / len(signs)

        if self.frames == "radial":
            hidden = norm(gate(radial))
        else:
            hidden = average(geometry.pca, ((1, 1), (1, -1), (-1, 1), (-1, -1)))
        if self.frames == "blended":
            aligned = average(geometry.edge, ((1, 1), (1, -1)))
            blend = geometry.blend[..., None]
            hidden = blend * hidden + (1.0 - blend) * aligned
        return Dense(self.width, dtype=self.dtype, name="w2")(hidden)


class QueryKeyValue(nn.Module):
    """One linear map to [q | k | v]; queries of the receivers alone, the first n rows."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """h [R, d] -> q [n, d], k [R, d], v [R, d]."""
        d = h.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (d, 3 * d))
        bias = self.param("bias", nn.initializers.zeros, (3 * d,))
        q = matmul(h[:n], kernel[:, :d], self.dtype) + bias[:d]
        k, v = jnp.split(matmul(h, kernel[:, d:], self.dtype) + bias[d:], 2, axis=-1)
        return q, k, v


class AttentionLogits(nn.Module):
    """Logit of each edge and head: `SwiGLU_{3 d_h + g -> 128 -> 1}([q_i, k_j, F_ij, y_j - y_i])`.

    The MLP is shared by the heads. W1 is one kernel, used in four row blocks.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, features: EdgeFeatures, y: jax.Array, edges: Edges
    ) -> jax.Array:
        """q [n, h, d_h], k [R, h, d_h], features of the edges, y [R, g] -> [..., h].

        The first n of the R rows are the receivers.
        """
        n, heads, d = q.shape
        rows = 3 * d + y.shape[-1]
        kernel = self.param("w1_kernel", nn.initializers.lecun_normal(), (rows, LOGIT_WIDTH))
        bias = self.param("w1_bias", nn.initializers.zeros, (LOGIT_WIDTH,))
        w_q, w_k, _, w_y = jnp.split(kernel, (d, 2 * d, 3 * d))
        y_part = matmul(y, w_y, self.dtype)[:, None, :]
        receiver_part = matmul(q, w_q, self.dtype) - y_part[:n] + bias
        sender_part = matmul(k, w_k, self.dtype) + y_part
        frame_part = features.hidden
        if frame_part is None:
            frame_part = logits_of_frames(kernel, features.frames, heads, self.dtype)
        hidden = receiver_part[edges.receivers] + sender_part[edges.senders] + frame_part
        return NormedProjection(name="project")(gate(hidden))


class SpatialBlock(nn.Module):
    """Neighbour attention, feed-forward and expression head of one STFlow layer.

    Returns the new tokens [n, d] of the receivers and their head's expression [n, g].
    """

    heads: int
    num_genes: int
    dropout: float
    zero_init: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        y: jax.Array,
        features: EdgeFeatures,
        edges: Edges,
        num_receivers: int,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """h [R, d] and y [R, g], the n receivers first; features of the edges; keys [n]."""
        n, d = num_receivers, h.shape[-1]

        def split_heads(x):
            return x.reshape(*x.shape[:-1], self.heads, d // self.heads)

        def drop(tag, x):
            return dropout(keys, tag, self.dropout, x)

        normed = LayerNorm(name="norm")(h)
        q, k, v = map(split_heads, QueryKeyValue(self.dtype, name="qkv")(normed, n))
        logits = AttentionLogits(self.dtype, name="logits")(q, k, features, y, edges)
        from_values, from_frames = attend(logits, v, split_heads(features.frames), edges, n)
        message = jnp.concatenate([from_values.reshape(n, d), from_frames.reshape(n, d)], axis=-1)
        h = h[:n]
        h = h + drop(0, SwiGLU(d, d, self.dtype, name="mix")(message))
        h = h + drop(1, SwiGLU(4 * d, d, self.dtype, name="feed_forward")(h))
        return h, ExpressionHead(self.num_genes, self.zero_init, self.dtype, name="head")(h)
