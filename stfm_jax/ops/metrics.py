"""Scores of predicted expression, on the host in NumPy, float64.

Accuracy per gene, structure between genes and in space, calibration of draws. Intervals for
differences are in bootstrap.py. Nothing here knows of methods, folds' names or files (score/ does).
Arrays are [n, g]: spots of one test set (all test slides of a fold together) by genes.

Two rules hold throughout (docs/methods.md, "Protocol and metrics"): a prediction without variation
scores 0, never NaN; what has no variation in the truth cannot be scored, gets NaN, and
`mean_over_genes` leaves it out and counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata

from stfm_jax.errors import InputError

MIN_DRAWS_FOR_COVERAGE = 99
_CHUNK_ELEMENTS = 2**24  # float64 values in flight per chunk: 128 MiB
_ROUNDING = 1e-6  # a range below this part of the largest value is float32 rounding
LEAST_KNOWN = 20  # spots of a gene that is scored on some of them [ours]


def pearson(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Pearson correlation per gene over the spots.

    Args:
      pred: [n, g] predicted expression.
      true: [n, g] measured expression.

    Returns:
      [g]; 0 where the prediction is constant, NaN where the truth is.

    Raises:
      ValueError: shapes that differ, or a prediction that is not finite.
    """
    pred, true = checked(pred, true)
    return _correlation(pred, true, constant(pred), constant(true))


def pearson_known(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Pearson correlation per gene, [g], over its spots whose truth is not NaN; else as `pearson`.

    Genes of fewer than LEAST_KNOWN such spots are NaN too: theirs would be noise.
    """
    known = ~np.isnan(true)
    number = np.maximum(known.sum(axis=0), 1)
    a, b = (np.where(known, values, 0.0) for values in (pred, true))
    a, b = (np.where(known, v - v.sum(axis=0) / number, 0.0) for v in (a, b))
    norm_a, norm_b = np.sqrt((a * a).sum(axis=0)), np.sqrt((b * b).sum(axis=0))
    flat = norm_a <= 1e-6 * np.sqrt(number)
    value = (a * b).sum(axis=0) / np.maximum(norm_a * norm_b, 1e-30)
    value = np.where(flat, 0.0, value)
    return np.where((known.sum(axis=0) < LEAST_KNOWN) | (norm_b <= 1e-9), np.nan, value)


def spearman(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Spearman rank correlation per gene, ties at their mean rank; otherwise as `pearson`."""
    pred, true = checked(pred, true)
    ranks = rankdata(pred, axis=0), rankdata(true, axis=0)
    return _correlation(*ranks, constant(pred), constant(true))


def pearson_spot(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Pearson correlation per spot over the genes, [n]; not comparable with `pearson`."""
    return pearson(np.asarray(pred).T, np.asarray(true).T)


def mse(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean squared error per gene, [g]."""
    pred, true = checked(pred, true)
    return np.mean((pred - true) ** 2, axis=0)


def mae(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean absolute error per gene, [g]."""
    pred, true = checked(pred, true)
    return np.mean(np.abs(pred - true), axis=0)


def mean_over_genes(values: np.ndarray) -> tuple[float, int]:
    """Mean of a per-gene (or per-spot) score, and how many NaN were left out of it.

    Returns:
      (mean, number left out); the mean is NaN where nothing is left.
    """
    values = np.asarray(values, np.float64)
    kept = values[~np.isnan(values)]
    return (float(kept.mean()) if len(kept) else float("nan")), len(values) - len(kept)


def gene_structure(pred: np.ndarray, true: np.ndarray) -> float:
    """Agreement of the two gene-gene correlation matrices.

    The Pearson correlation between the off-diagonal entries. Genes constant in the truth are left
    out; a gene constant in the prediction alone correlates with nothing (entries 0) [ours].

    Args:
      pred: [n, g]; a single draw, where structure is the question (a mean is too smooth).
      true: [n, g].

    Returns:
      The correlation; NaN with fewer than three genes left.
    """
    pred, true = checked(pred, true)
    keep = ~constant(true)
    if keep.sum() < 3:
        return float("nan")
    above = np.triu_indices(int(keep.sum()), k=1)
    entries = []
    for values in (pred[:, keep], true[:, keep]):
        z = _standardized(values)
        entries.append((z.T @ z)[above][:, None])
    return float(pearson(*entries)[0])


def morans_i(expr: np.ndarray, senders: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    """Moran's I per gene with binary weights on an edge list.

    I = (n / e) sum_edges z_s z_r / sum_i z_i^2 with z centred over the spots: near
    -1/(n - 1) without spatial structure, near 1 for smooth fields.

    Args:
      expr: [n, g] expression of one slide (pooled over slides, it would count the difference of
        their means as spatial structure).
      senders: [e] spot indices.
      receivers: [e] spot indices.

    Returns:
      [g]; NaN for constant genes.

    Raises:
      ValueError: no edges.
    """
    expr = np.asarray(expr, np.float64)
    n, edges = len(expr), len(senders)
    if edges == 0:
        raise ValueError("Moran's I: the edge list is empty.")
    adjacency = sp.csr_matrix((np.ones(edges), (receivers, senders)), shape=(n, n))
    z = _standardized(expr)
    moran = n / edges * (z * (adjacency @ z)).sum(axis=0)
    return np.where(constant(expr), np.nan, moran)


def moran_agreement(
    pred: np.ndarray, true: np.ndarray, senders: np.ndarray, receivers: np.ndarray
) -> float:
    """Agreement of spatial structure: Lin's concordance between Moran's I per gene [ours].

        ccc = 2 cov(a, b) / (var a + var b + (mean a - mean b)^2)

    of the predicted against the measured values over the genes. Unlike a correlation it charges
    an offset, which is the fault of smooth regressors: every gene too smooth by the same amount.
    Genes constant in the truth are left out; a gene constant in the prediction has I = 0.

    Args:
      pred: [n, g] prediction for one slide; a single draw, where structure is the question.
      true: [n, g].
      senders: [e].
      receivers: [e].

    Returns:
      Concordance in [-1, 1]; NaN with fewer than two genes left.
    """
    return moran_scores(pred, true, senders, receivers).agreement


class MoranScores(NamedTuple):
    """What Moran's I per gene of a prediction is worth."""

    agreement: float  # see `moran_agreement`
    recovery: float  # see `moran_scores`


def moran_scores(
    pred: np.ndarray, true: np.ndarray, senders: np.ndarray, receivers: np.ndarray
) -> MoranScores:
    """`moran_agreement`, and how well spatially variable genes are recovered, of one graph.

    Recovery is the Spearman correlation over the genes between the predicted and the measured
    Moran's I [ours]: whether the genes that vary most in space are those that do in the tissue,
    whatever the height. 0 where no gene varies in the prediction; NaN with fewer than three genes.
    """
    pred, true = checked(pred, true)
    keep = ~constant(true)
    if keep.sum() < 2:
        return MoranScores(float("nan"), float("nan"))
    a = np.nan_to_num(morans_i(pred[:, keep], senders, receivers), nan=0.0)
    b = morans_i(true[:, keep], senders, receivers)
    recovery = float(spearman(a[:, None], b[:, None])[0]) if len(a) > 2 else float("nan")
    return MoranScores(_concordance(a, b), recovery)


def consistency(pred: np.ndarray, true: np.ndarray, around: np.ndarray) -> float:
    """Agreement of a section's likeness to its neighbours: concordance over the genes [ours].

    Per gene, the correlation of the section's values with what was measured around the same places
    on neighbouring sections; the predicted section's against the measured one's, compared as
    `moran_agreement` compares Moran's I. A draw that ignores its neighbours is too little like
    them, a smooth prediction too much.

    Args:
      pred: [n, g] prediction for one slide; a single draw, where structure is the question.
      true: [n, g].
      around: [n, g] weighted mean of what was measured at corresponding spots.

    Returns:
      Concordance in [-1, 1]; NaN with fewer than two genes left.
    """
    pred, true = checked(pred, true)
    keep = ~constant(true) & ~constant(around)
    if keep.sum() < 2:
        return float("nan")
    a = np.nan_to_num(pearson(pred[:, keep], around[:, keep]), nan=0.0)
    return _concordance(a, pearson(true[:, keep], around[:, keep]))


def _concordance(a: np.ndarray, b: np.ndarray) -> float:
    """Lin's, of a against b."""
    scale = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    if scale == 0:
        return 1.0
    return float(2 * np.mean((a - a.mean()) * (b - b.mean())) / scale)


def crps(draws: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score per gene, from draws.

    The fair estimator, unbiased in the number of draws: mean |X - y| less half the mean |X - X'|
    over pairs of different draws. The pairs are summed over sorted draws, O(m log m).

    Args:
      draws: [m, n, g], m >= 2.
      true: [n, g].

    Returns:
      [g] means over spots, in units of the expression; may be slightly negative.

    Raises:
      InputError: fewer than two draws (for a point prediction the CRPS is the MAE).
      ValueError: shapes that differ.
    """
    _check_draws(draws, true)
    m, n, g = draws.shape
    if m < 2:
        raise InputError(
            f"CRPS needs at least 2 draws, found {m}; raise the number of draws, or use the MAE, "
            "which is the CRPS of a point prediction."
        )
    weights = (2 * np.arange(1, m + 1) - m - 1)[:, None, None] / (m * (m - 1))
    total = np.zeros(g)
    for part in _spot_chunks(n, m * g):
        x, y = draws[:, part].astype(np.float64), true[part]
        total += np.abs(x - y).mean(axis=0).sum(axis=0)
        x.sort(axis=0)
        total -= (weights * x).sum(axis=(0, 1))
    return total / n


def coverage(
    draws: np.ndarray,
    true: np.ndarray,
    level: float | Sequence[float] = 0.8,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Share of held-out values inside the central interval of the draws, per gene.

    By randomised ranks, so that a perfect model covers exactly `level` even where most values are
    zeros: the truth's rank among the draws, ties broken uniformly at random, gives
    u = (rank + U(0, 1)) / (m + 1), and the value is covered where u lies in
    ((1 - level)/2, (1 + level)/2). Draws and truth are compared in the coarser of their two
    float types, so that equal counts stay equal after log1p.

    Args:
      draws: [m, n, g], m >= 99.
      true: [n, g].
      level: nominal coverage, in (0, 1), or several.
      rng: NumPy generator; seed 0 when None.

    Returns:
      [g] shares in [0, 1]; of several levels [levels, g].

    Raises:
      InputError: too few draws.
      ValueError: shapes that differ.
    """
    _check_draws(draws, true)
    m, n, g = draws.shape
    if m < MIN_DRAWS_FOR_COVERAGE:
        raise InputError(
            f"coverage needs at least {MIN_DRAWS_FOR_COVERAGE} draws, found {m}; raise the number "
            "of draws used for evaluation."
        )
    rng = np.random.default_rng(0) if rng is None else rng
    dtype = min(draws.dtype, np.asarray(true).dtype, key=lambda d: d.itemsize)
    levels = np.asarray(level)[..., None, None]
    covered = np.zeros((*np.shape(level), g))
    for part in _spot_chunks(n, m * g):
        x, y = draws[:, part].astype(dtype), np.asarray(true)[part].astype(dtype)
        below, ties = (x < y).sum(axis=0), (x == y).sum(axis=0)
        rank = below + rng.integers(0, ties + 1)
        u = (rank + rng.random(rank.shape)) / (m + 1)
        covered += (np.abs(u - 0.5) < levels / 2).sum(axis=-2)
    return covered / n


def quantiles(draws: np.ndarray, p: float | Sequence[float]) -> np.ndarray:
    """Quantiles of the draws at rank p (m + 1), numpy's `weibull`.

    With few draws the extreme ranks are clipped to the smallest and largest draw: p = 0.1 needs
    nine draws at least to mean what it says.

    Args:
      draws: [m, ...].
      p: one probability, or several.

    Returns:
      [...] for one probability, [len(p), ...] for several; the dtype of the draws.
    """
    return np.quantile(draws, np.asarray(p), axis=0, method="weibull").astype(draws.dtype)


def checked(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth [n, g] as float64.

    Raises:
      ValueError: shapes that differ, no spots, or a prediction that is not finite.
    """
    pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
    if pred.ndim != 2 or pred.shape != true.shape or len(pred) == 0:
        raise ValueError(
            f"expected prediction and truth [n, g], n > 0; found {pred.shape} and {true.shape}."
        )
    if not np.isfinite(pred).all():
        raise ValueError(f"the prediction holds {(~np.isfinite(pred)).sum()} NaN or infinities.")
    return pred, true


def _check_draws(draws: np.ndarray, true: np.ndarray) -> None:
    if draws.ndim != 3 or draws.shape[1:] != true.shape or draws.shape[1] == 0:
        raise ValueError(
            f"expected draws [m, n, g] and truth [n, g]; found {draws.shape} and {true.shape}."
        )


def constant(values: np.ndarray) -> np.ndarray:
    """Columns that do not vary, beyond float32 rounding; [g] bool."""
    return np.ptp(values, axis=0) <= _ROUNDING * np.abs(values).max(axis=0)


def _standardized(values: np.ndarray) -> np.ndarray:
    """Columns centred and scaled to unit length; constant ones are 0."""
    centred = np.where(constant(values), 0.0, values - values.mean(axis=0))
    length = np.linalg.norm(centred, axis=0)
    return centred / np.where(length > 0, length, 1.0)


def _correlation(a, b, constant_a: np.ndarray, constant_b: np.ndarray) -> np.ndarray:
    """Column-wise correlation: 0 where a is constant, NaN where b is."""
    score = np.clip((_standardized(a) * _standardized(b)).sum(axis=0), -1.0, 1.0)
    return np.where(constant_b, np.nan, np.where(constant_a, 0.0, score))


def _spot_chunks(n: int, per_spot: int) -> list[slice]:
    """Slices of spots with at most _CHUNK_ELEMENTS values each."""
    step = max(1, _CHUNK_ELEMENTS // max(per_spot, 1))
    return [slice(start, start + step) for start in range(0, n, step)]
