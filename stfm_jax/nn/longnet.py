"""GigaPath's slide encoder: LongNet's dilated attention over the spots of a slide.

Each branch of the attention cuts the sequence into segments, and of a segment each head sees every
r-th token; the longer the segments, the larger r, so that the cost is nearly linear.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.nn.mlp import Dense, LayerNorm, dropout, fold
from stfm_jax.nn.transformer import FeedForward

SEGMENTS = (1024, 5792, 32768, 185363, 1048576)  # tokens [GigaPath]
DILATIONS = (1, 2, 4, 8, 16)  # [GigaPath]
UNCOVERED = -1e8  # log of the weight of a branch that does not reach a token [LongNet]

_xavier = nn.initializers.xavier_uniform()


class LongNet(nn.Module):
    """Linear, sines of the place, a class token -> layers -> LN -> LN; genes by Linear [GigaPath].

    The defaults are those of `enc12l768d`. [ours]: genes are read from every spot's token and, past
    the layers, from its features; tokens stand row by row, so that the order of spots changes
    nothing; padding is not seen. `published` leaves tokens in the order given, and they see the
    zeros that segments are filled up with.
    """

    num_genes: int
    width: int = 768
    depth: int = 12
    heads: int = 16
    dropout: float = 0.25
    segments: tuple[int, ...] = SEGMENTS
    dilations: tuple[int, ...] = DILATIONS
    published: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, place: jax.Array, mask: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Expression [n, g] of all spots of a slide.

        Args:
          x: [n, f] features.
          place: [n, 2] int32, column and row.
          mask: [n] bool, False of padding; all True where `published`.
          keys: [n], for dropout in training.
        """
        order = jnp.arange(len(x))
        if not self.published:
            order = jnp.lexsort((place[:, 0], place[:, 1], ~mask))
        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.width))
        h = Dense(self.width, kernel_init=_xavier, name="embed")(x[order])
        h = h + sines(place[order], self.width)
        h = jnp.concatenate([cls, h])
        seen = jnp.concatenate([jnp.ones(1, bool), mask[order]])
        if keys is not None:
            keys = jnp.concatenate([fold(keys[:1], 1), fold(keys, 0)[order]])
        h = dropout(keys, 0, self.dropout, h)
        for i in range(self.depth):
            layer = Layer(
                self.heads, self.dropout, self.segments, self.dilations, self.published,
                name=f"layer_{i}",
            )  # fmt: skip
            h = layer(h, seen, None if keys is None else fold(keys, i))
        h = LayerNorm(name="norm_layers")(h)
        h = LayerNorm(1e-6, name="norm")(h)[1:][jnp.argsort(order)]
        skip = Dense(self.num_genes, use_bias=False, kernel_init=_xavier, name="skip")(x)
        return Dense(self.num_genes, kernel_init=_xavier, name="head")(h) + skip


class Layer(nn.Module):
    """`x + W LN(attention(LN x))`, then `x + feed_forward(LN x)`, normed within as well."""

    heads: int
    dropout: float
    segments: tuple[int, ...]
    dilations: tuple[int, ...]
    published: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """x [n, d], mask [n], keys [n] -> [n, d]."""
        n, d = x.shape
        qkv = Dense(3 * d, kernel_init=_xavier, name="qkv")(LayerNorm(name="norm")(x))
        q, k, v = (a.reshape(n, self.heads, -1) for a in jnp.split(qkv, 3, axis=-1))
        h = dilated_attention(q, k, v, mask, self.segments, self.dilations, self.published)
        h = LayerNorm(name="norm_mixed")(h.reshape(n, d))
        h = Dense(d, kernel_init=_xavier, name="out")(h)
        x = x + dropout(keys, 2, self.dropout, h)
        feed_forward = FeedForward(4 * d, self.dropout, True, _xavier, name="feed_forward")
        return x + feed_forward(LayerNorm(name="norm_2")(x), keys)


def sines(place: jax.Array, width: int) -> jax.Array:
    """Fixed embedding [n, width] of places [n, 2]: first the rows', then the columns'.

    Of each, sines and then cosines of the place times `10000^(-i / (width / 4))` [MAE, GigaPath].
    """
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angle = place[:, ::-1, None] * frequency.astype(np.float32)
    both = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return both.reshape(len(place), width)


def dilated_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    segments: tuple[int, ...] = SEGMENTS,
    dilations: tuple[int, ...] = DILATIONS,
    see_padding: bool = False,
) -> jax.Array:
    """Attention in branches, mixed by the sums of their exponentials [LongNet].

    Args:
      q: [n, h, c] queries; k and v likewise.
      mask: [n] bool; tokens that are not seen.
      segments: of each branch, in tokens.
      dilations: r of each branch. The heads are cut into r groups, and group j sees, and is seen
        in, the tokens j, j + r, ... of a segment.
      see_padding: whether the zeros that fill up segments are seen, as published.

    Returns:
      [n, h, c]. No gradient flows through the weights of the branches, as published.
    """
    found = [
        _branch(q, k, v, mask, min(segment, len(q)), dilation, see_padding)
        for segment, dilation in zip(segments, dilations, strict=True)
    ]
    mixed, total = map(jnp.stack, zip(*found, strict=True))
    weights = jax.lax.stop_gradient(jax.nn.softmax(total, axis=0))
    return jnp.sum(weights[..., None] * mixed, axis=0)


def _branch(q, k, v, mask, segment: int, dilation: int, see_padding: bool):
    """One branch: its output [n, h, c] and the logarithms [n, h] of its sums."""
    n, heads, c = q.shape
    # Segments, tokens of a segment over dilation, dilation; then the groups of heads.
    number, length = -(-n // segment), -(-segment // dilation)
    group = -(-heads // dilation)
    own = jnp.eye(dilation, dtype=bool)[:, :, None]

    def cut(a: jax.Array) -> jax.Array:
        """[n, ...] -> [segments, tokens, dilation, ...], filled up with zeros."""
        a = _filled(a, number * segment).reshape(number, segment, *a.shape[1:])
        a = _filled(a, length * dilation, axis=1)
        return a.reshape(number, length, dilation, *a.shape[2:])

    def thinned(a: jax.Array) -> jax.Array:
        """[n, h, c] -> [segments, tokens, groups, heads of a group, c]."""
        a = _filled(a, group * dilation, axis=1).reshape(n, dilation, group, c)
        return jnp.sum(jnp.where(own[..., None], cut(a), 0.0), axis=2)

    def spread(a: jax.Array, rest: float) -> jax.Array:
        """The way back, [..., groups, heads of a group, c] -> [n, h, c]; else `rest`."""
        a = jnp.where(own[..., None], a[:, :, None], rest)
        a = a.reshape(number, length * dilation, dilation * group, -1)[:, :segment]
        return a.reshape(number * segment, dilation * group, -1)[:n, :heads]

    q, k, v = map(thinned, (q, k, v))
    logits = jnp.einsum("slghc,stghc->sghlt", q, k) * c**-0.5
    if not see_padding:
        there = jnp.moveaxis(cut(mask), 2, 1)[:, :, None, None]
        logits = jnp.where(there, logits, -jnp.inf)
    # A segment that a group sees nothing of: no row of it is NaN, nor has its gradient any.
    peak = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), UNCOVERED))
    weights = jnp.exp(logits - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    mixed = jnp.einsum("sghlt,stghc->slghc", weights, v)
    sums = jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + peak, UNCOVERED)
    sums = jnp.moveaxis(sums, 3, 1)  # [segments, tokens, groups, heads of a group, 1]
    return spread(mixed, 0.0), spread(sums, UNCOVERED)[..., 0]


def _filled(a: jax.Array, size: int, axis: int = 0) -> jax.Array:
    """Zeros behind it, `size` along the axis in all."""
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, size - a.shape[axis])
    return jnp.pad(a, widths)


def score_bytes(num_spots: int, heads: int) -> int:
    """Memory of the attention's scores of one layer, float32."""
    n = num_spots + 1
    total = 0
    for segment, dilation in zip(SEGMENTS, DILATIONS, strict=True):
        segment = min(segment, n)
        padded_heads = dilation * -(-heads // dilation)
        total += -(-n // segment) * math.ceil(segment / dilation) ** 2 * padded_heads
    return 4 * total
