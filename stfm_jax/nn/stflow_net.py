"""The networks of STFlow: H&E features and a noisy state of all spots -> expression."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.blocks import (
    LOGIT_WIDTH,
    EdgeFeatures,
    FrameFeatures,
    SpatialBlock,
    logits_of_frames,
)
from stfm_jax.nn.mlp import Dense, TimeEmbedding, dropout, fold, gaussian_noise
from stfm_jax.ops.frames import EdgeGeometry
from stfm_jax.ops.tiles import Edges, Tiles, edge_list, with_received

EXPRESSIONS = ("token", "differences")
ATTENTIONS = ("tiled", "segments")

Params = dict[str, Any]
# Tags of the noises (see nn.mlp.dropout); block i drops by keys folded with BLOCKS + i.
FEATURE_NOISE, FEATURE_DROPOUT, TOWER, BLOCKS = 0, 1, 2, 16


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
    def __call__(self, features: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """`keys` [n] make the noise of training; none of it without them."""
        h = gaussian_noise(keys, TOWER, self.noise, features)
        for i in range(self.num_layers):
            h = nn.silu(nn.Dense(self.width)(h))
            h = dropout(keys, TOWER + 1 + i, self.dropout, h)
        return nn.Dense(self.num_genes, kernel_init=nn.initializers.zeros)(h)


class Layer(NamedTuple):
    """Parameters of one block and of its frame features."""

    frames: Params
    block: Params


@dataclasses.dataclass(frozen=True)
class STFlowNet:
    """Tokens from features and time, L spatial blocks, mean of their heads [STFlow].

    Settings and pure functions of parameters; the parts can be called one by one, because a slide
    too large for one call goes through them tile by tile (see models.stflow.whole_slide).

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
    attention: str = "tiled"  # segments: the definition, over one edge list of the slide
    dtype: str = "float32"  # of the operands of matrix products: float32 or bfloat16

    def init(self, key: jax.Array, num_features: int) -> Params:
        """Parameters for features of this width."""
        d, g = self.width, self.num_genes
        frames, edge = jnp.zeros((1, d)), Edges(*jnp.zeros((2, 1), jnp.int32), jnp.ones(1, bool))
        offset, scalar = jnp.zeros((1, 2)), jnp.zeros(1)
        geometry = EdgeGeometry(offset, offset, scalar, scalar)
        examples = {
            "embed_features": (self._embed_features, jnp.zeros((1, num_features))),
            "embed_time": (self._embed_time, jnp.zeros(())),
        }
        if self.expression == "token":
            examples["embed_expression"] = (self._embed_expression, jnp.zeros((1, g)))
        for i in range(self.num_blocks):
            examples[f"frames_{i}"] = (self._frames, geometry)
            examples[f"block_{i}"] = (
                self._block, jnp.zeros((1, d)), jnp.zeros((1, g)), EdgeFeatures(frames), edge, 1
            )  # fmt: skip
        keys = jax.random.split(key, len(examples))
        return {
            name: module.init(key, *inputs)["params"]
            for key, (name, (module, *inputs)) in zip(keys, examples.items(), strict=True)
        }

    def encode_features(
        self, params: Params, features: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """The image's part of the tokens, [n, d]; depends on the slide alone."""
        features = gaussian_noise(keys, FEATURE_NOISE, self.feature_noise, features)
        features = dropout(keys, FEATURE_DROPOUT, self.feature_dropout, features)
        return self._embed_features.apply({"params": params["embed_features"]}, features)

    def encode_edges(self, params: Params, tiles: Tiles) -> list[EdgeFeatures]:
        """Features of the edges [p, T, K] in every block, to be kept over evaluations."""
        return [self.encode_layer(layer, tiles) for layer in self.layers(params)]

    def encode_layer(self, layer: Layer, tiles: Tiles) -> EdgeFeatures:
        """Features of the edges [p, T, K] in one block; see `encode_edges`."""

        def one(geometry: EdgeGeometry) -> EdgeFeatures:
            frames = self.encode_frames(layer, geometry)
            kernel = layer.block["logits"]["w1_kernel"]
            return EdgeFeatures(frames, logits_of_frames(kernel, frames, self.heads, self.dtype))

        return map_tiles(one, tiles.geometry, tiles.mask)

    def edge_bytes(self, num_edges: int) -> int:
        """Memory that the features of so many edges take, padding counted, if they are kept."""
        return 4 * num_edges * (self.width + self.heads * LOGIT_WIDTH) * self.num_blocks

    def encode_frames(self, layer: Layer, geometry: EdgeGeometry) -> jax.Array:
        """F_ij [..., d] of a block."""
        return self._frames.apply({"params": layer.frames}, geometry)

    def layers(self, params: Params) -> list[Layer]:
        """The parameters of each block; all alike in structure, so one trace serves all."""
        return [Layer(params[f"frames_{i}"], params[f"block_{i}"]) for i in range(self.num_blocks)]

    def embed(self, params: Params, x: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
        """What enters the first block [n, d]: tokens, time t ([] or [n]) and state x [n, g]."""
        h = tokens + self._embed_time.apply({"params": params["embed_time"]}, t)
        if self.expression == "token":
            h = h + self._embed_expression.apply({"params": params["embed_expression"]}, x)
        return h

    def block(
        self,
        layer: Layer,
        h: jax.Array,
        y: jax.Array,
        features: EdgeFeatures | EdgeGeometry,
        edges: Edges,
        num_receivers: int,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """One block for the first n of the rows h [R, d], y [R, g]: (h [n, d], head [n, g]).

        The edges' features are those kept, or the geometry they are computed from.
        """
        if isinstance(features, EdgeGeometry):
            features = EdgeFeatures(self.encode_frames(layer, features))
        weights = {"params": layer.block}
        return self._block.apply(weights, h, y, features, edges, num_receivers, keys)

    def next_state(self, x: jax.Array, head: jax.Array) -> jax.Array:
        """y [n, g] whose differences the next block sees."""
        return x + head if self.expression == "token" else head

    def denoise(
        self,
        params: Params,
        x: jax.Array,
        t: jax.Array,
        tokens: jax.Array,
        tiles: Tiles,
        features: list[EdgeFeatures] | None = None,
        keys: jax.Array | None = None,
        additions: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        """One evaluation: state x [n, g] at t ([] or [n]) -> mean of the blocks' heads [n, g].

        Args:
          params: of `init`.
          x: state.
          t: time, one or per spot.
          tokens: of `encode_features`.
          tiles: of the slide.
          features: of `encode_edges`; computed here where they are not given.
          keys: [n] noise of training, none without.
          additions: [n, d] to what enters each block, where another network controls this one.
        """
        h = self.embed(params, x, t, tokens)
        y, total = x, 0.0
        for i, layer in enumerate(self.layers(params)):
            if additions is not None:
                h = h + additions[i]
            features_i = tiles.geometry if features is None else features[i]
            h, head = self.whole_block(layer, i, h, y, features_i, tiles, keys)
            total, y = total + head, self.next_state(x, head)
        return total / self.num_blocks

    def whole_block(self, layer: Layer, index: int, h, y, features, tiles: Tiles, keys):
        """`block` for all rows of a slide; keys [n] or None are those of the network."""
        keys = None if keys is None else fold(keys, BLOCKS + index)
        over = over_edge_list if self.attention == "segments" else over_tiles
        return over(functools.partial(self.block, layer), h, y, features, tiles, keys)

    def apply(
        self,
        params: Params,
        x: jax.Array,
        t: jax.Array,
        features: jax.Array,
        tiles: Tiles,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Everything in one call: [n, g]."""
        tokens = self.encode_features(params, features, keys)
        return self.denoise(params, x, t, tokens, tiles, keys=keys)

    @property
    def _embed_features(self):
        return Dense(self.width, dtype=self.dtype)

    @property
    def _embed_time(self):
        return TimeEmbedding(self.width, self.time_scale)

    @property
    def _embed_expression(self):
        return Dense(self.width, use_bias=False, dtype=self.dtype)

    @property
    def _frames(self):
        return FrameFeatures(self.width, self.frames, self.dtype)

    @property
    def _block(self):
        return SpatialBlock(self.heads, self.num_genes, self.dropout, self.zero_init, self.dtype)


def over_edge_list(block, h, y, features, tiles: Tiles, keys):
    """A block over the edge list of the whole slide, by segment operations."""
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), features)
    return block(h, y, flat, edge_list(tiles), len(h), keys)


def over_tiles(block, h, y, features, tiles: Tiles, keys):
    """A block tile by tile; when differentiated, a tile's edges are computed again backwards.

    Args:
      block: (h [R, d], y [R, g], features, edges, n, keys) -> (h [n, d], head [n, g]).
      h: [n, d] tokens of the slide.
      y: [n, g] expression.
      features: of the edges [p, T, K], or the geometry.
      tiles: p tiles of T spots.
      keys: [n] or None.
    """
    # Halos are gathered at once: the gradient of that is one scatter.
    halo = (with_received(tiles, a)[tiles.halo] for a in (h, y))
    return run_tiles(block, h, y, *halo, features, tiles.senders, tiles.mask, keys)


def run_tiles(block, h, y, h_halo, y_halo, features, senders, mask, keys=None):
    """A block for some tiles whose halos [p, H, ...] are at hand; see `over_tiles`."""
    p, size = mask.shape[:2]
    receivers = jnp.arange(size)[:, None]

    def one(inputs):
        h, y, h_halo, y_halo, features, senders, mask, keys = inputs
        rows = jnp.concatenate([h, h_halo]), jnp.concatenate([y, y_halo])
        return block(*rows, features, Edges(senders, receivers, mask), size, keys)

    def split(a):
        return None if a is None else a.reshape(p, size, *a.shape[1:])

    inputs = (split(h), split(y), h_halo, y_halo, features, senders, mask, split(keys))
    h, head = map_tiles(one, inputs, mask)
    return h.reshape(p * size, -1), head.reshape(p * size, -1)


def map_tiles(one, inputs, mask: jax.Array):
    """`one` of every tile's inputs (leading axis p), one after the other; zeros for empty tiles.

    Padding costs nothing; and the branch keeps XLA's CPU code from fusing the slicing of the
    inputs into the edge computation, which made it four times slower.
    """
    first = jax.tree.map(lambda a: a[0], inputs)
    if len(mask) == 1:
        return jax.tree.map(lambda a: a[None], one(first))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, first))

    def unless_empty(arguments):
        occupied, inputs = arguments
        return jax.lax.cond(occupied, jax.checkpoint(one), lambda _: nothing, inputs)

    return jax.lax.map(unless_empty, (jnp.any(mask, axis=(1, 2)), inputs))
