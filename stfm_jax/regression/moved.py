"""A regression moved by what neighbouring sections measured [ours].

    moved = anchor + s_r r + s_y (y - m) + s_a (anchor - m)

r and y are residual and expression at the retrieved spots, their weighted means; m the genes' mean.
Residuals tell what the images do not; expression, in place of some of the anchor, tells it where
the regression is poor. The shares s are fitted on training sections: per gene, drawn toward those
of all genes together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.ops.context import Context, known_weight, weighted_mean
from stfm_jax.regression import regressors

# How many spots' worth the shares of all genes count in those of one [ours].
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


def residuals_seen(
    kind: str,
    x: Sequence[np.ndarray],
    y: Sequence[np.ndarray],
    coords: Sequence[np.ndarray],
    choice: regressors.Choice | regressors.Choices | None,
    seed: int,
) -> Callable[[int], list[np.ndarray]]:
    """i -> residuals [n_j, g] of every training slide j as slide i may see them.

    They are about a regressor that saw neither of the two: one fitted on slide i leans toward its
    expression already, so what it leaves of slide j leans away from it, and a share learnt on that
    is near zero.

    Args:
      kind: of regressor; `none` for the mean.
      x: [n_i, f] of every slide.
      y: [n_i, g].
      coords: [n_i, 2].
      choice: the regressor's hyperparameters.
      seed: of the regressors, and of the blocks of an only slide.
    """
    sizes = [len(part) for part in y]
    slide = np.repeat(np.arange(len(sizes)), sizes)
    groups = regressors.leave_out_groups(sizes, coords, seed)
    group = [groups[slide == i][0] for i in range(len(sizes))]
    x, y = np.concatenate(x), np.concatenate(y)
    left = {}
    for pair in itertools.combinations_with_replacement(sorted(set(group)), 2):
        out = np.isin(groups, pair)
        left[pair] = y - _left_out(kind, x, y, out, slide, coords, choice, seed)

    def seen_by(i: int) -> list[np.ndarray]:
        pairs = [tuple(sorted((group[i], other))) for other in group]
        return [left[pair][slide == j] for j, pair in enumerate(pairs)]

    return seen_by


def _left_out(kind, x, y, out, slide, coords, choice, seed) -> np.ndarray:
    """Prediction [n, g] of the spots `out` [n] by a regressor that saw none of them.

    Where nothing else is left, of each slide by its own other spatial blocks.
    """
    prediction = np.zeros_like(y)
    if kind == "none":
        prediction[out] = y[~out].mean(axis=0) if (~out).any() else y.mean(axis=0)
    elif (~out).any():
        regressor = regressors.fit(kind, x[~out], y[~out], choice, seed)
        prediction[out] = regressors.predict(regressor, x[out])
    else:
        for i, places in enumerate(coords):
            own = slide == i
            blocks = regressors.leave_out_groups([len(places)], [places], seed)
            prediction[own] = regressors.out_of_fold(kind, x[own], y[own], blocks, choice, seed)
    return prediction
