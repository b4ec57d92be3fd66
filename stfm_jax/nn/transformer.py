"""Blocks of the plain transformers: norm before, exact GELU, residuals; HisToGene and TRIPLEX.

Tokens are [..., t, d]. Masked tokens are seen by none; what stands in their own rows is finite and
means nothing. Keys, one for each spot, are for dropout in training (`nn.mlp.dropout`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.mlp import Dense, LayerNorm, dropout


class Attention(nn.Module):
    """Attention of tokens to tokens, without biases but that of the output [HisToGene, TRIPLEX]."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        seen: jax.Array,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """x [..., t, d], seen [..., s, e] with its mask [..., s], bias [h, t, s] -> [..., t, d]."""
        inner = self.heads * self.head_width

        def split(a: jax.Array) -> jax.Array:
            return a.reshape(*a.shape[:-1], self.heads, self.head_width)

        q = split(Dense(inner, use_bias=False, name="q")(x))
        kv = Dense(2 * inner, use_bias=False, name="kv")(seen)
        k, v = map(split, jnp.split(kv, 2, axis=-1))
        logits = jnp.einsum("...thc,...shc->...hts", q, k) * self.head_width**-0.5
        if bias is not None:
            logits = logits + bias
        if mask is not None:  # finite, so that a row that sees nothing is
            logits = jnp.where(mask[..., None, None, :], logits, -1e30)
        mixed = jnp.einsum("...hts,...shc->...thc", jax.nn.softmax(logits, axis=-1), v)
        return Dense(x.shape[-1], name="out")(mixed.reshape(*mixed.shape[:-2], inner))


class FeedForward(nn.Module):
    """Linear -> GELU -> Linear; of LongNet's the widened tokens are normed [GigaPath]."""

    hidden: int
    dropout: float
    inner_norm: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """x [n, ..., d], keys [n] -> [n, ..., d]."""
        h = Dense(self.hidden, kernel_init=self.kernel_init, name="widen")(x)
        h = nn.gelu(h, approximate=False)
        h = LayerNorm(name="norm")(h) if self.inner_norm else dropout(keys, 0, self.dropout, h)
        h = Dense(x.shape[-1], kernel_init=self.kernel_init, name="narrow")(h)
        return dropout(keys, 1, self.dropout, h)


class Block(nn.Module):
    """`x + attention(LN x)`, then `x + feed_forward(LN x)`.

    Attention is to the tokens themselves, or to others, which the same norm is for [TRIPLEX].
    """

    heads: int
    head_width: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
        *,
        seen: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """x [n, ..., d], seen [..., s, d], its mask [..., s], keys [n], bias [h, t, s]."""
        norm = LayerNorm(name="norm")
        normed = norm(x)
        attention = Attention(self.heads, self.head_width, name="attention")
        h = attention(normed, normed if seen is None else norm(seen), mask, bias)
        x = x + dropout(keys, 2, self.dropout, h)
        feed_forward = FeedForward(self.hidden, self.dropout, name="feed_forward")
        return x + feed_forward(LayerNorm(name="norm_2")(x), keys)
