"""TRIPLEX's network: a spot, its 5 x 5 neighbours and its slide, fused by cross-attention.

Of embeddings there is one target token, where the published network has 49 of a patch, and each of
the three branches projects them to its width [ours]. Places are one table: the spots in the 5 x 5
cells around each spot, of which the middle 3 x 3 are those of the convolution.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.nn.mlp import Dense, LayerNorm, fold
from stfm_jax.nn.transformer import Block

SIDE = 5  # cells of a spot's neighbourhood
DISTILLED = 0.3  # weight of the fused prediction in a branch's loss [TRIPLEX]


@dataclasses.dataclass(frozen=True)
class Depths:
    """Of one encoder."""

    depth: int
    heads: int
    ratio: int  # hidden width of its feed-forward parts over its width
    dropout: float


class Predictions(NamedTuple):
    """Expression [n, g] of the fused tokens and of each branch alone."""

    fused: jax.Array
    target: jax.Array
    neighbours: jax.Array
    slide: jax.Array


class TRIPLEX(nn.Module):
    """Three encoders and their fusion [TRIPLEX], which the defaults are those of.

    Mended [ours]: the convolution over the lattice has a skip; the mean over neighbours is one
    over those that are there. `published` undoes both.
    """

    num_genes: int
    width: int = 512
    fusion: Depths = Depths(1, 4, 4, 0.2)
    slide: Depths = Depths(3, 16, 4, 0.1)
    neighbours: Depths = Depths(3, 16, 1, 0.3)
    published: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        around: jax.Array,
        present: jax.Array,
        mask: jax.Array,
        keys: jax.Array | None = None,
    ) -> Predictions:
        """Expression of all spots of a slide.

        Args:
          x: [n, f] features.
          around: [n, 25] int32, the spots in the cells around each spot, row by row.
          present: [n, 25] bool, False of cells that are empty.
          mask: [n] bool, False of padding.
          keys: [n], for dropout in training.
        """

        def keys_of(branch: int) -> jax.Array | None:
            return None if keys is None else fold(keys, branch)

        target = Dense(self.width, name="embed_target")(x)
        near = Dense(self.width, name="embed_neighbours")(x)[around]
        near = jnp.where(present[..., None], near, 0.0)
        near = NeighbourEncoder(self.neighbours, name="neighbours_encoder")(
            near, present, keys_of(0)
        )
        whole = Dense(self.width, name="embed_slide")(x)
        whole = SlideEncoder(self.slide, not self.published, name="slide_encoder")(
            whole, around, present, mask, keys_of(1)
        )
        fused = FusionEncoder(self.fusion, name="fusion_encoder")(
            whole, target, near, present, keys_of(2)
        )
        counted = jnp.ones_like(present) if self.published else present
        number = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1)
        mean = jnp.sum(jnp.where(counted[..., None], near, 0.0), axis=1) / number
        heads = {"fused": fused, "target": target, "neighbours": mean, "slide": whole}
        return Predictions(
            **{k: Dense(self.num_genes, name=f"head_{k}")(v) for k, v in heads.items()}
        )


class NeighbourEncoder(nn.Module):
    """Blocks over the 25 tokens of each spot, with a bias by head and distance; then LN."""

    depths: Depths

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x [n, 25, d], present [n, 25], keys [n] -> [n, 25, d]."""
        cells = np.stack(np.divmod(np.arange(SIDE**2), SIDE), axis=1)
        rows, columns = np.moveaxis(np.abs(cells[:, None] - cells[None]), -1, 0)
        for i in range(self.depths.depth):
            shape = (self.depths.heads, SIDE, SIDE)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, shape)[:, rows, columns]
            block = _block(self.depths, x.shape[-1], f"block_{i}")
            x = block(x, present, None if keys is None else fold(keys, i), bias=bias)
        return LayerNorm(name="norm")(x)


class SlideEncoder(nn.Module):
    """A block over all spots, the convolution over their lattice, the other blocks; then LN."""

    depths: Depths
    skip: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        around: jax.Array,
        present: jax.Array,
        mask: jax.Array,
        keys: jax.Array | None,
    ) -> jax.Array:
        """x [n, d], around and present [n, 25], mask and keys [n] -> [n, d]."""
        for i in range(self.depths.depth):
            if i == 1:
                convolved = LatticeConvolution(name="convolution")(x, around, present)
                x = x + convolved if self.skip else convolved
            block = _block(self.depths, x.shape[-1], f"block_{i}")
            x = block(x, mask, None if keys is None else fold(keys, i))
        return LayerNorm(name="norm")(x)


class LatticeConvolution(nn.Module):
    """Depthwise 3 x 3 convolution over the lattice that the spots lie on; empty cells are 0."""

    @nn.compact
    def __call__(self, x: jax.Array, around: jax.Array, present: jax.Array) -> jax.Array:
        """x [n, d], around and present [n, 25] -> [n, d]."""
        d = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (9, d))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        middle = np.arange(SIDE**2).reshape(SIDE, SIDE)[1:-1, 1:-1].ravel()
        # Cell by cell: the spots of all nine at once would be nine times the tokens.
        return bias + sum(
            jnp.where(present[:, cell, None], x[around[:, cell]], 0.0) * kernel[i]
            for i, cell in enumerate(middle)
        )


class FusionEncoder(nn.Module):
    """`LN(C(slide, target) + C(slide, neighbours))`, C one stack of cross-attention blocks."""

    depths: Depths

    @nn.compact
    def __call__(
        self,
        slide: jax.Array,
        target: jax.Array,
        near: jax.Array,
        present: jax.Array,
        keys: jax.Array | None,
    ) -> jax.Array:
        """slide and target [n, d], near [n, 25, d], present [n, 25], keys [n] -> [n, d]."""
        depths = self.depths
        blocks = [_block(depths, slide.shape[-1], f"block_{i}") for i in range(depths.depth)]

        def read(seen: jax.Array, mask: jax.Array | None, tag: int) -> jax.Array:
            x = slide[:, None]
            for i, block in enumerate(blocks):
                own = None if keys is None else fold(keys, tag * depths.depth + i)
                x = block(x, mask, own, seen=seen)
            return x[:, 0]

        return LayerNorm(name="norm")(read(target[:, None], None, 0) + read(near, present, 1))


def _block(depths: Depths, width: int, name: str) -> Block:
    heads = depths.heads
    return Block(heads, width // heads, depths.ratio * width, depths.dropout, name=name)


def loss(predictions: Predictions, y: jax.Array) -> jax.Array:
    """The published loss of each spot [n], y [n, g]: truth for all, the fused one for branches."""

    def error(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(a - b), axis=-1)

    fused, *branches = predictions
    return error(fused, y) + sum(
        (1.0 - DISTILLED) * error(branch, y) + DISTILLED * error(fused, branch)
        for branch in branches
    )
