"""BLEEP's projections of image and expression into one space, and its contrastive loss.

Xie et al. 2023, as their code has it (docs/methods.md says what differs).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from stfm_jax.nn.mlp import Dense, LayerNorm


class Projection(nn.Module):
    """`p = Linear(x); LN(p + dropout(Linear(GELU(p))))`, [n, f] -> [n, width]."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        p = Dense(self.width, name="project")(x)
        h = Dense(self.width, name="mix")(nn.gelu(p, approximate=False))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return LayerNorm(name="norm")(p + h)


class Towers(nn.Module):
    """Both projections."""

    width: int
    dropout: float

    def setup(self) -> None:
        self.image = Projection(self.width, self.dropout)
        self.expression = Projection(self.width, self.dropout)

    def __call__(self, x: jax.Array, y: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Features [n, f] and expression [n, g] -> z_i, z_e, each [n, width]."""
        return self.image(x, train), self.expression(y, train)


def contrastive_loss(z_i: jax.Array, z_e: jax.Array, temperature: float) -> jax.Array:
    """Cross-entropy of the similarities against softened ones within both, of each spot [n].

    S = z_e z_i' / temperature against T = softmax_rows((z_i z_i' + z_e z_e') / (2 temperature)),
    mean of both directions. T' is not normalised, and gradients flow through T [BLEEP].

    Args:
      z_i, z_e: [n, d] projections of image and expression.
      temperature: published 1.
    """
    similarities = z_e @ z_i.T / temperature
    targets = jax.nn.softmax((z_i @ z_i.T + z_e @ z_e.T) / (2.0 * temperature), axis=-1)

    def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return -jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1), axis=-1)

    of_expression = cross_entropy(similarities, targets)
    of_images = cross_entropy(similarities.T, targets.T)
    return (of_expression + of_images) / 2.0
