"""The ControlNet of HoloTea: what other sections say, added to STFlow's blocks.

A trainable copy of the base's blocks reads the base's tokens together with the context of the
stack, and adds to what enters each block of the base through a projection that starts at zero: at
initialisation the 3D network is the 2D network [HoloTea; the form is ours, docs/methods.md
section 2].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.blocks import EdgeFeatures
from stfm_jax.nn.global_attention import GlobalAttention
from stfm_jax.nn.mlp import Dense, LayerNorm, dropout, fold, gaussian_noise
from stfm_jax.nn.stflow_net import Layer, STFlowNet
from stfm_jax.ops.context import Context
from stfm_jax.ops.tiles import AXIS, Tiles

Params = dict[str, Any]
# Tags of the noises (see nn.mlp.dropout); the control's keys are the base's, folded with CONTROL.
CONTROL, CONTEXT_NOISE, CONTEXT_DROPOUT = 64, 0, 1


class ContextAttention(nn.Module):
    """Attention of each spot over those retrieved for it [ours].

    Keys and values are one linear map of `[h_j, |dp|, |dz|, y_j, r_j, has_y_j]`; the logits start
    from the logarithm of the retrieval's weight.
    """

    width: int
    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: jax.Array, seen: jax.Array, weight: jax.Array) -> jax.Array:
        """h [n, d], what is seen of the retrieved spots [n, K, c], weight [n, K] -> [n, d]."""
        d = self.width

        def split_heads(x):
            return x.reshape(*x.shape[:-1], self.heads, d // self.heads)

        q = split_heads(Dense(d, dtype=self.dtype, name="q")(LayerNorm(name="norm")(h)))
        kv = Dense(2 * d, dtype=self.dtype, name="kv")(seen)
        k, v = (split_heads(part) for part in jnp.split(kv, 2, axis=-1))
        logits = jnp.einsum("nhd,nkhd->nkh", q, k) / jnp.sqrt(d / self.heads)
        prior = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-12)), -1e30)
        attention = jax.nn.softmax(logits + prior[..., None], axis=1)
        there = jnp.any(weight > 0, axis=1)[:, None]
        out = jnp.einsum("nkh,nkhd->nhd", attention, v).reshape(-1, d)
        return jnp.where(there, Dense(d, dtype=self.dtype, name="out")(out), 0.0)


@dataclasses.dataclass(frozen=True)
class ControlNet:
    """Settings and pure functions of the control's parameters and of the base's."""

    base: STFlowNet
    width: int = 64  # of a retrieved spot's features
    noise: float = 1.0  # sd of Gaussian noise on the retrieved features, training only
    dropout: float = 0.7  # share of them dropped, training only
    global_attention: bool = True  # linear, over the whole slide
    slides: int = 1  # of a batch, at most: each attends to itself

    def init(self, key: jax.Array, base: Params) -> Params:
        """Parameters: the blocks are copies of the base's, what they add starts at zero."""
        keys = iter(jax.random.split(key, 3 + self.base.num_blocks))
        h = jnp.zeros((1, self.base.width))
        seen = jnp.zeros((1, 1, self.width + 2 + 2 * self.base.num_genes + 1))
        params = {
            "context": self._attention.init(next(keys), h, seen, jnp.ones((1, 1)))["params"],
            **{f"block_{i}": base[f"block_{i}"] for i in range(self.base.num_blocks)},
        }
        for i in range(self.base.num_blocks):
            params[f"project_{i}"] = self._projection.init(next(keys), h)["params"]
        if self.global_attention:
            params["global"] = self._global.init(next(keys), h, jnp.ones(1, bool))["params"]
        return jax.tree.map(jnp.copy, params)

    def encode(
        self,
        params: Params,
        tokens: jax.Array,
        context: Context,
        moments: tuple[jax.Array, jax.Array],
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens [n, d] that know the context; they depend on the stack alone.

        Args:
          params: of `init`.
          tokens: [n, d] of the base.
          context: of the spots.
          moments: mean and standard deviation [g] of the genes.
          keys: [n] noise of training, none without.
        """
        keys = None if keys is None else fold(keys, CONTROL)
        seen = self._noisy(context, keys)
        inputs = what_is_seen(context._replace(features=seen), *moments)
        said = self._attention.apply({"params": params["context"]}, tokens, inputs, context.weight)
        return tokens + said

    def additions(
        self,
        params: Params,
        base: Params,
        x: jax.Array,
        t: jax.Array,
        tokens: jax.Array,
        tiles: Tiles,
        mask: jax.Array,
        slide: jax.Array,
        features: list[EdgeFeatures] | None = None,
        keys: jax.Array | None = None,
    ) -> list[jax.Array]:
        """What enters each block of the base besides, [n, d] each; see `STFlowNet.denoise`.

        Args:
          params: of `init`.
          base: parameters of the base, whose frames and embeddings are shared.
          x: [n, g] state.
          t: its time, one or per spot.
          tokens: [n, d] of `encode`.
          tiles: of the slide.
          mask: [n] which spots are none of padding.
          slide: [n] index of the slide in the batch.
          features: of the edges with the base's frames, or None.
          keys: [n] noise of training, none without.
        """
        keys = None if keys is None else fold(keys, CONTROL)
        h = self.base.embed(base, x, t, tokens)
        if self.global_attention:
            axis = None if tiles.sends is None else AXIS
            weights = {"params": params["global"]}
            h = h + self._global.apply(weights, h, mask, slide % self.slides, self.slides, axis)
        out = []
        for i, layer in enumerate(self.base.layers(base)):
            copy = Layer(layer.frames, params[f"block_{i}"])
            features_i = tiles.geometry if features is None else features[i]._replace(hidden=None)
            h, _ = self.base.whole_block(copy, i, h, x, features_i, tiles, keys)
            out.append(self._projection.apply({"params": params[f"project_{i}"]}, h))
        return out

    def _noisy(self, context: Context, keys: jax.Array | None) -> jax.Array:
        features = gaussian_noise(keys, CONTEXT_NOISE, self.noise, context.features)
        return dropout(keys, CONTEXT_DROPOUT, self.dropout, features)

    @property
    def _attention(self):
        return ContextAttention(self.base.width, self.base.heads, self.base.dtype)

    @property
    def _projection(self):
        return Dense(self.base.width, dtype=self.base.dtype, kernel_init=nn.initializers.zeros)

    @property
    def _global(self):
        return GlobalAttention(self.base.heads, self.base.dtype)


def what_is_seen(context: Context, mean: jax.Array, std: jax.Array) -> jax.Array:
    """`[h_j, |dp|, |dz|, y_j, r_j, has_y_j]` [n, K, c], expression in standard deviations."""
    known = context.known[..., None]
    expr = jnp.where(known, (context.expr - mean) / std, 0.0)
    parts = (context.features, context.distance, expr, context.residual / std, known)
    return jnp.concatenate([jnp.asarray(part, jnp.float32) for part in parts], axis=-1)
