"""A regression moved by what neighbouring sections measured [ours].

    moved = anchor + s_r r + s_y (y - m) + s_a (anchor - m)

r and y are residual and expression at the retrieved spots, their weighted means; m the genes' mean.
Residuals tell what the images do not; expression, in place of some of the anchor, tells it where
the regression is poor. The shares s are fitted on training sections: per gene, drawn toward those
of all genes together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.ops.context import Context, known_weight, weighted_mean

TERMS = 3
# How many spots' worth the shares of all genes count in those of one; by leaving out training
# sections of her2st (100, 300, 1,000, 3,000 and no shares per gene).
COMMON_SPOTS = 1000


@jax.jit
def terms(context: Context, anchor: jax.Array, gene_mean: jax.Array) -> jax.Array:
    """r, y - m and anchor - m of spots, [n, 3, g]; 0 where no neighbour is known.

    Args:
      context: of the spots.
      anchor: [n, g] that knows neither the spots nor their neighbours.
      gene_mean: [g].
    """
    weight = known_weight(context)
    near = jnp.any(weight > 0, axis=1)[:, None, None]
    residual = weighted_mean(weight, context.residual)
    expr = weighted_mean(weight, context.expr)
    found = jnp.stack([residual, expr - gene_mean, anchor - gene_mean], axis=1)
    return jnp.where(near, found, 0.0)


def move(shares: jax.Array, found: jax.Array) -> jax.Array:
    """What is added to the anchor [n, g]: shares [3, g] of terms [n, 3, g]."""
    return jnp.sum(shares * found, axis=1)


def fit_shares(found: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Shares [3, g] by which terms [n, 3, g] tell residuals [n, g] best; 0 for terms that are 0."""
    found, residuals = found.astype(np.float64), residuals.astype(np.float64)
    x, y = found.transpose(2, 0, 1), residuals.T[..., None]  # [g, n, 3], [g, n, 1]
    gram, product = x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ y
    common = np.linalg.lstsq(gram.sum(axis=0), product.sum(axis=0), rcond=None)[0]
    square = (found**2).mean(axis=(0, 2))
    ridge = COMMON_SPOTS * np.diag(np.where(square > 0, square, 1.0))
    own = np.linalg.solve(gram + ridge, product - gram @ common)
    return (common + own)[..., 0].T.astype(np.float32)
