"""Scores of a split: children's counts, and how far each parent's ratios are from even."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.metrics import structural_similarity

from stfm_jax.data.coarsen import Pair
from stfm_jax.data.lattice import find_lattice
from stfm_jax.errors import InputError
from stfm_jax.ops import metrics
from stfm_jax.score.spatial import moran

LEAST_COUNTS = 5  # of a parent whose ratios are scored
_WINDOW = 7  # of SSIM, children


def ratios(pair: Pair, parents: np.ndarray, children: np.ndarray) -> np.ndarray:
    """Each child's share less an even one [n, g]; NaN where it is not scored.

    Scored are parents of two or more children and LEAST_COUNTS counts or more of the gene.

    Args:
      pair: the sample.
      parents: [P, g] measured counts.
      children: [n, g] counts, measured or predicted.
    """
    number = pair.num_children[pair.parent][:, None]
    counts = parents[pair.parent]
    share = children / np.maximum(counts, 1.0) - 1.0 / number
    return np.where((counts >= LEAST_COUNTS) & (number > 1), share, np.nan)


def views(pairs: Sequence[Pair], counts: Sequence[np.ndarray], values) -> dict[str, np.ndarray]:
    """The scales on which Pearson is taken: name -> [n, g] of all samples together.

    Args:
      pairs: the samples.
      counts: [P_i, g] of the parents.
      values: [n_i, g] counts of the children, measured or predicted.
    """
    together = np.concatenate(values)
    parts = zip(pairs, counts, values, strict=True)
    return {
        "pearson": together,
        "pearson_log1p": np.log1p(together),
        "ratio": np.concatenate([ratios(*part) for part in parts]),
    }


def score(
    pairs: Sequence[Pair],
    counts: Sequence[np.ndarray],
    prediction: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
) -> dict[str, float]:
    """Scores of children's counts [n_i, g]; arguments as of `views`.

    Per-gene scores are over all samples together, then averaged over genes; SSIM and Moran's
    agreement, of log1p(counts), are averaged over samples. SSIM is left out where the children lie
    on no lattice. `mass_error` is the largest |sum of children - parent| / max(parent, 1).
    """
    seen, measured = (views(pairs, counts, values) for values in (prediction, true))
    scores = {
        name: _mean(metrics.pearson_known(np.nan_to_num(seen[name]), measured[name]))
        for name in seen
    }
    pooled = np.concatenate(prediction), np.concatenate(true)
    scores["rmse"] = float(np.mean(np.sqrt(metrics.mse(*pooled))))
    logs = [(np.log1p(p), np.log1p(t)) for p, t in zip(prediction, true, strict=True)]
    similar = [ssim(pair.high.coords_um, *log) for pair, log in zip(pairs, logs, strict=True)]
    if not any(value is None for value in similar):
        scores["ssim"] = float(np.mean(similar))
    coords = [pair.high.coords_um for pair in pairs]
    scores["moran"] = moran(*zip(*logs, strict=True), coords).agreement
    scores["mass_error"] = max(
        mass_error(*part) for part in zip(pairs, counts, prediction, strict=True)
    )
    return scores


def score_draws(
    pairs: Sequence[Pair],
    counts: Sequence[np.ndarray],
    draws: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    seed: int,
    singles: int = 4,
) -> dict[str, float]:
    """Scores of draws [d, n_i, g]: of single ones, their mean; CRPS and coverage of all."""
    count = min(singles, len(draws[0]))
    rows = [score(pairs, counts, [d[i] for d in draws], true) for i in range(count)]
    scores = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    pooled, measured = np.concatenate(draws, axis=1), np.concatenate(true)
    scores["crps"] = float(np.mean(metrics.crps(pooled, measured)))
    if len(pooled) >= metrics.MIN_DRAWS_FOR_COVERAGE:
        covered = metrics.coverage(pooled, measured, 0.8, np.random.default_rng(seed))
        scores["coverage80"] = float(np.mean(covered))
    return scores


def mass_error(pair: Pair, counts: np.ndarray, children: np.ndarray) -> float:
    """Largest |sum of a parent's children - its counts| / max(counts, 1)."""
    total = np.zeros(counts.shape)
    np.add.at(total, pair.parent, np.asarray(children, np.float64))
    return float((np.abs(total - counts) / np.maximum(counts, 1.0)).max())


def ssim(coords_um: np.ndarray, prediction: np.ndarray, true: np.ndarray) -> float | None:
    """Mean over genes and tissue of the structural similarity of two maps [n, g].

    On the children's lattice, 0 where there is no tissue, with the truth's range; genes that do not
    vary are left out. None where the children lie on no lattice, or on too small a one.
    """
    try:
        _, index = find_lattice(coords_um, "")
    except InputError:
        return None
    shape = tuple(index.max(axis=0) + 1)
    if min(shape) < _WINDOW:
        return None
    values, at = [], tuple(index.T)
    for gene in range(true.shape[1]):
        extent = np.ptp(true[:, gene])
        if extent > 0:
            images = np.zeros((2, *shape))
            images[(0, *at)], images[(1, *at)] = prediction[:, gene], true[:, gene]
            _, similar = structural_similarity(
                *images, win_size=_WINDOW, data_range=extent, full=True
            )
            values.append(similar[at].mean())
    return float(np.mean(values)) if values else None


def _mean(values: np.ndarray) -> float:
    return metrics.mean_over_genes(values)[0]
