"""ST-Net's head on embeddings: one linear layer, trained (He et al. 2020)."""

from __future__ import annotations

import flax.linen as nn
import jax

from stfm_jax.models.network import Network, Rows
from stfm_jax.nn.mlp import Dense


class LinearHead(nn.Module):
    """From features to genes; it starts at the training mean [ST-Net]."""

    num_genes: int

    @nn.compact
    def __call__(self, rows: Rows, train: bool) -> jax.Array:
        return Dense(self.num_genes, kernel_init=nn.initializers.zeros, name="head")(rows.x)


class STNet(Network):
    """A linear head, trained by gradients on the squared error of every spot."""

    name = "stnet"
    papers = ("ST-Net, doi 10.1038/s41551-020-0578-x",)

    def module(self, num_genes: int) -> nn.Module:
        return LinearHead(num_genes)
