"""HisToGene's network: a transformer over all spots of a slide, with learned places."""

from __future__ import annotations

import flax.linen as nn
import jax

from stfm_jax.nn.mlp import Dense, LayerNorm, dropout, fold
from stfm_jax.nn.transformer import Block

HEAD_WIDTH = 64  # [HisToGene], whatever the width


class HisToGene(nn.Module):
    """Linear and embeddings of x and y -> blocks -> LN, Linear [HisToGene].

    Its patches are flattened pixels; here a spot's features are embedded in their stead [ours].
    The defaults are those of its tutorial.
    """

    num_genes: int
    width: int = 1024
    depth: int = 8
    heads: int = 16
    dropout: float = 0.1
    positions: int = 64  # in x, and in y

    @nn.compact
    def __call__(
        self, x: jax.Array, place: jax.Array, mask: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Expression [n, g] of all spots of a slide.

        Args:
          x: [n, f] features.
          place: [n, 2] int32, column and row, each from 0 to below `positions`.
          mask: [n] bool, False of padding.
          keys: [n], for dropout in training.
        """
        init = nn.initializers.normal(0.02)  # [ours]; a unit normal drowns standardised features
        h = Dense(self.width, name="embed")(x)
        for axis, name in enumerate(("embed_x", "embed_y")):
            table = self.param(name, init, (self.positions, self.width))
            h = h + table[place[:, axis]]
        h = dropout(keys, 0, self.dropout, h)
        for i in range(self.depth):
            block = Block(self.heads, HEAD_WIDTH, 2 * self.width, self.dropout, name=f"block_{i}")
            h = block(h, mask, None if keys is None else fold(keys, i))
        return Dense(self.num_genes, name="head")(LayerNorm(name="norm")(h))
