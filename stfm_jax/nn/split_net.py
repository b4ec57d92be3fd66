"""A transformer over the children of one parent, for one gene; it knows no gene and no order."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.mlp import LayerNorm

_TIMES = 4  # frequencies of the time embedding


class SplitNet(nn.Module):
    """What is added to the logits of the linear flow: of mean, the pair's facts, state and time.

    t (v(facts, t) mean + w(facts, t) state + free part), zero at initialisation. The free part
    comes from blocks of attention over the children whose norms adapt to facts, the sample's
    general features and time [DiT]. Of the proposals it sees only the mean that they make, and at
    t = 0 it is shut: it would soon know the children of a few hundred parents by heart [ours].
    """

    width: int = 16
    blocks: int = 1
    heads: int = 2

    @nn.compact
    def __call__(
        self,
        mean: jax.Array,  # [N, s] logits of the mean split
        facts: jax.Array,  # [N, q]
        general: jax.Array,  # [N, d]
        mask: jax.Array,  # [N, s]
        state: jax.Array,  # [N, s], 0 where nothing is known yet
        t: jax.Array,  # [N]
    ) -> jax.Array:
        d, zeros = self.width, nn.initializers.zeros
        waves = jnp.cos(jnp.pi * t[:, None] * jnp.arange(1, _TIMES + 1) / 2)
        facts = jnp.concatenate([facts, waves], axis=1)
        seen = nn.silu(nn.Dense(d)(facts))
        tokens = jnp.stack([mean, state], axis=-1)
        gates = nn.Dense(tokens.shape[-1], kernel_init=zeros)(nn.silu(nn.Dense(d)(seen)))
        pooled = jnp.einsum("nsf,nf->ns", tokens, gates)
        c = nn.silu(nn.Dense(d)(jnp.concatenate([facts, general], axis=1)))
        h = nn.Dense(d)(tokens)
        for _ in range(self.blocks):
            h = _Block(d, self.heads)(h, c, mask)
        free = nn.Dense(1, kernel_init=zeros)(LayerNorm()(h))[..., 0]
        return t[:, None] * (pooled + free)


class _Block(nn.Module):
    """Attention over siblings and an MLP, each scaled and shifted by the condition; adaLN-zero."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, h: jax.Array, c: jax.Array, mask: jax.Array) -> jax.Array:
        n, s, d = h.shape
        bend = nn.Dense(6 * d, kernel_init=nn.initializers.zeros)(c)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(bend, 6, axis=-1)
        x = LayerNorm()(h) * (1.0 + scale1) + shift1
        q, k, v = jnp.split(nn.Dense(3 * d, use_bias=False)(x), 3, axis=-1)
        q, k, v = (a.reshape(n, s, self.heads, d // self.heads) for a in (q, k, v))
        weight = jnp.einsum("nihd,njhd->nhij", q, k) / jnp.sqrt(d / self.heads)
        weight = jax.nn.softmax(jnp.where(mask[:, None, None], weight, -1e9), axis=-1)
        seen = jnp.einsum("nhij,njhd->nihd", weight, v).reshape(n, s, d)
        h = h + (1.0 + gate1) * nn.Dense(d)(seen)
        x = LayerNorm()(h) * (1.0 + scale2) + shift2
        return h + (1.0 + gate2) * nn.Dense(d)(nn.gelu(nn.Dense(2 * d)(x)))
