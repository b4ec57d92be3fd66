"""The networks of STFlow: H&E features and a noisy state of all spots -> expression."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.blocks import Edges, FrameFeatures, SpatialBlock
from stfm_jax.nn.mlp import TimeEmbedding

EXPRESSIONS = ("token", "differences")


class ImageTower(nn.Module):
    """What the image alone says: SiLU MLP from features [n, f] to expression [n, g] [ours].

    In units of the genes' standard deviation about their mean. Noise and dropout are strong because
    a few hundred spots of a few slides are all there is.
    """

    num_genes: int
    width: int = 256
    num_layers: int = 2
    dropout: float = 0.6
    noise: float = 0.8  # sd of Gaussian noise on the features, training only

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False) -> jax.Array:
        h = features
        if train and self.noise > 0:
            h = h + self.noise * jax.random.normal(self.make_rng("dropout"), h.shape)
        for _ in range(self.num_layers):
            h = nn.silu(nn.Dense(self.width)(h))
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(self.num_genes, kernel_init=nn.initializers.zeros)(h)


class STFlowNet(nn.Module):
    """Tokens from features and time, L spatial blocks, mean of their heads [STFlow].

    `expression` says how the network sees its own state x: "differences" only through the
    differences x_j - x_i in the attention logits (published), "token" also by a projection of x
    added to the tokens, without which it cannot represent a joint posterior [ours].
    `zero_init` starts the heads at zero.
    """

    num_genes: int
    width: int = 128
    num_blocks: int = 4
    heads: int = 4
    dropout: float = 0.2
    expression: str = "token"
    frames: str = "blended"
    time_scale: float = 1000.0
    feature_noise: float = 0.0  # sd of Gaussian noise on features, training only
    feature_dropout: float = 0.0  # share of features dropped, training only
    zero_init: bool = True

    def setup(self):
        self.embed_features = nn.Dense(self.width)
        self.embed_time = TimeEmbedding(self.width, self.time_scale)
        if self.expression == "token":
            self.embed_expression = nn.Dense(self.width, use_bias=False)
        self.input_dropout = nn.Dropout(self.feature_dropout)
        self.edge_features = [
            FrameFeatures(self.width, self.frames) for _ in range(self.num_blocks)
        ]
        self.blocks = [
            SpatialBlock(self.heads, self.num_genes, self.dropout, self.zero_init)
            for _ in range(self.num_blocks)
        ]

    def encode_edges(self, edges: Edges) -> list[jax.Array]:
        """F_ij [e, d] of every block; depends on the geometry alone, so once per slide."""
        return [features(edges) for features in self.edge_features]

    def encode_features(self, features: jax.Array, train: bool = False) -> jax.Array:
        """The image's part of the tokens, [n, d]; depends on the slide alone."""
        if train and self.feature_noise > 0:
            noise = jax.random.normal(self.make_rng("dropout"), features.shape)
            features = features + self.feature_noise * noise
        return self.embed_features(self.input_dropout(features, deterministic=not train))

    def denoise(
        self,
        x: jax.Array,
        t: jax.Array,
        tokens: jax.Array,
        frames: list[jax.Array],
        edges: Edges,
        train: bool = False,
    ) -> jax.Array:
        """One evaluation: state x [n, g] at t ([] or [n]) -> mean of the blocks' heads [n, g].

        `tokens` and `frames` come from `encode_features` and `encode_edges`.
        """
        h = tokens + self.embed_time(t)
        if self.expression == "token":
            h = h + self.embed_expression(x)
        y, heads = x, []
        for block, block_frames in zip(self.blocks, frames, strict=True):
            h, head = block(h, y, block_frames, edges, train)
            heads.append(head)
            y = x + head if self.expression == "token" else head
        return jnp.mean(jnp.stack(heads), axis=0)

    def __call__(self, x, t, features, edges: Edges, train: bool = False) -> jax.Array:
        """Everything in one call: [n, g]."""
        tokens = self.encode_features(features, train)
        return self.denoise(x, t, tokens, self.encode_edges(edges), edges, train)
