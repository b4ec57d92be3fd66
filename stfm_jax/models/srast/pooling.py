"""One weight for every proposal: the split that pools their opinions, and how far data lie from it.

The shares are a softmax over the siblings of `sum_f w_f proposals[f]`, w that of the greatest
likelihood of the children's counts: a multinomial logistic regression, convex. On her2st weights
that depend on the gene's or the parent's counts, and networks, do worse on another patient. [ours]
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import gammaln, softmax

from stfm_jax.flow.simplex_path import Spread, centred, target
from stfm_jax.models.srast.features import SplitRows

FULL_WEIGHT = 30.0  # counts of a parent beyond which more say little more
_RIDGE = 1e-5  # on weights of proposals of unit variance
_MOST, _SPREAD_MOST = 400_000, 50_000  # pairs fitted to; weights and rates are few
_LEAST_SHARE = 1e-6  # that the mean expects of a child


def pair_weight(counts):
    """How much a pair counts, by its parent's counts; of NumPy or JAX arrays."""
    return counts / (1.0 + counts / FULL_WEIGHT)


def fit(rows: SplitRows, seed: int = 0) -> np.ndarray:
    """Weights [F] of the proposals.

    Args:
      rows: of all training samples.
      seed: of the draw where there are more pairs than are needed.
    """
    some = _informative(rows, _MOST, seed)
    mask, weight = rows.mask[some], pair_weight(rows.counts[some])
    x, y = rows.proposals[some], rows.ratios[some]
    scale = np.maximum(np.sqrt((x[mask] ** 2).mean(axis=0)), 1e-6)
    x, weight = x / scale, weight / weight.sum()

    def loss(w):
        logits = np.where(mask, x @ w.astype(np.float32), -np.inf)
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        value = -(weight * np.where(mask, y * np.where(mask, logs, 0.0), 0.0).sum(axis=1)).sum()
        slope = np.einsum("ns,nsf->f", weight[:, None] * (np.exp(logs) - y) * mask, x)
        return value + 0.5 * _RIDGE * (w @ w), slope.astype(np.float64) + _RIDGE * w

    found = minimize(loss, np.zeros(x.shape[2]), jac=True, method="L-BFGS-B")
    return (found.x / scale).astype(np.float32)


def spread(rows: SplitRows, pool: np.ndarray, seed: int = 0) -> Spread:
    """How far measured shares lie from the mean split: what noise is fitted to.

    Children's counts are taken as Dirichlet-multinomial about the mean, with precision
    exp(rate_0 + rate_1 log1p(counts)) of the greatest likelihood.

    Args:
      rows: of all training samples.
      pool: [F] weights of the mean split.
      seed: of the draw where there are more pairs than are needed.
    """
    some = _informative(rows, _SPREAD_MOST, seed)
    mask, shares = rows.mask[some], rows.ratios[some]
    counts = np.round(shares * rows.counts[some, None])
    total = counts.sum(axis=1)
    mean = softmax(np.where(mask, rows.proposals[some] @ pool, -np.inf), axis=1)
    mean = np.maximum(mean, _LEAST_SHARE)

    def loss(rate):
        a = np.exp(rate[0] + rate[1] * np.log1p(total))
        parts = gammaln(counts + a[:, None] * mean) - gammaln(a[:, None] * mean)
        return -(gammaln(a) - gammaln(a + total) + np.where(mask, parts, 0.0).sum(axis=1)).mean()

    rate = minimize(loss, np.array([2.0, 0.0]), method="Nelder-Mead").x
    about = target("clr", shares, rows.counts[some], mask) - centred(np.log(mean), mask)
    return Spread(rate.astype(np.float32), np.float32(np.asarray(about)[mask].var()))


def _informative(rows: SplitRows, most: int, seed: int) -> np.ndarray:
    """Rows of counts that may fall on several children, at most so many."""
    some = np.flatnonzero((rows.counts > 0) & (rows.mask.sum(axis=1) > 1))
    if len(some) > most:
        some = np.random.default_rng(seed).choice(some, most, replace=False)
    return some
