"""Spatial-block bootstrap: how sure a difference between two methods is, on the host in float64.

Spots near one another are alike, so whole tiles of a slide are drawn, not spots. What is compared
is the mean gene-wise Pearson of metrics.py; arrays are [n, g], spots of one test set by genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from stfm_jax.errors import InputError
from stfm_jax.ops import metrics


class PairedFold(NamedTuple):
    """What `paired_bootstrap` needs of one test set (one fold); a plain tuple will do."""

    pred_a: np.ndarray  # [n, g], or [s, n, g] of s seeds
    pred_b: np.ndarray  # likewise
    true: np.ndarray  # [n, g]; NaN where a gene is not scored at a spot
    blocks: np.ndarray  # [n] int, block of each spot (see `spatial_blocks`)
    slides: np.ndarray | None = None  # [n] slide of each spot, where there are several


class Bootstrap(NamedTuple):
    """A difference of two scores with its bootstrap interval."""

    difference: float  # score of a minus score of b, on the data as they are
    low: float  # 2.5 % quantile over resamples
    high: float  # 97.5 % quantile
    share_positive: float  # share of resamples in which a is better


def spatial_blocks(
    coords_um: np.ndarray, side_um: float | None = None, target: int = 20
) -> np.ndarray:
    """Square tiles over one slide, for resampling spots that are correlated in space.

    Args:
      coords_um: [n, 2] spot centres in micrometres.
      side_um: side of a tile; when None the side whose number of tiles with spots comes closest
        to `target`.
      target: number of tiles wanted [ours]: enough to resample, large against the range of
        spatial correlation.

    Returns:
      [n] int block of each spot, 0, 1, ... without gaps.

    Raises:
      InputError: a side that is not positive.
    """
    coords = np.asarray(coords_um, np.float64)
    if side_um is not None:
        if side_um <= 0:
            raise InputError(f"the side of a bootstrap block must be positive, found {side_um}.")
        return _tiles(coords, side_um)
    extent = max(float(np.ptp(coords, axis=0).max()), 1e-9)
    candidates = [_tiles(coords, extent / k) for k in np.arange(1.0, target + 1, 0.25)]
    return min(candidates, key=lambda blocks: abs(int(blocks.max()) + 1 - target))


def _tiles(coords: np.ndarray, side: float) -> np.ndarray:
    """Tiles of a grid centred on the middle of the coordinates' bounding box, [n] int."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    cells = np.maximum(np.ceil((high - low) / side - 1e-9), 1)
    origin = (low + high - cells * side) / 2
    index = np.clip(np.floor((coords - origin) / side), 0, cells - 1).astype(np.int64)
    return np.unique(index[:, 0] * int(cells[1]) + index[:, 1], return_inverse=True)[1]


def paired_bootstrap(
    folds: Sequence[PairedFold | tuple], num_resamples: int = 2000, seed: int = 0
) -> Bootstrap:
    """Spatial-block bootstrap of a difference in mean gene-wise Pearson, two methods paired.

    Blocks of spots are drawn with replacement within each slide; both predictions are scored on
    the same resampled spots; the fold's difference is averaged over the folds in each resample.
    Sums over the spots of a block suffice for Pearson, so that a resample costs a product of a
    count vector with [blocks, g] tables. Of several seeds the differences are averaged in each
    resample, all on the same spots: they are of one tissue. Genes constant in a fold's truth are
    left out of it, as are genes that a resample leaves constant, from that resample. The interval
    speaks of new tissue of these slides; it does not hold the spread over seeds or patients.

    Args:
      folds: test sets, each (pred_a, pred_b, true, blocks) or with the slides added.
      num_resamples: number of bootstrap resamples.
      seed: of the resampling.

    Returns:
      Bootstrap; a positive difference means that `pred_a` is better.

    Raises:
      InputError: a slide with fewer than two blocks.
      ValueError: shapes that differ, or no folds.
    """
    if not folds:
        raise ValueError("paired bootstrap: no folds.")
    rng = np.random.default_rng(seed)
    observed, resampled = [], []
    for fold in folds:
        sums, slides = zip(*map(_block_sums, _by_seed(PairedFold(*fold))), strict=True)
        slide_of_block = slides[0]
        every = np.ones((1, len(slide_of_block)))
        observed.append(np.mean([_difference(each, every)[0] for each in sums]))
        times = _resample_blocks(slide_of_block, num_resamples, rng)
        resampled.append(np.mean([_difference(each, times) for each in sums], axis=0))
    differences = np.mean(resampled, axis=0)
    differences = differences[~np.isnan(differences)]
    if len(differences) == 0:  # no gene varies in some fold
        return Bootstrap(*[float("nan")] * 4)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Bootstrap(
        float(np.mean(observed)), float(low), float(high), float(np.mean(differences > 0))
    )


def _by_seed(fold: PairedFold) -> list[PairedFold]:
    """A fold with predictions [n, g] for each seed."""
    a, b = (np.reshape(pred, (-1, *np.shape(fold.true))) for pred in (fold.pred_a, fold.pred_b))
    return [fold._replace(pred_a=one, pred_b=other) for one, other in zip(a, b, strict=True)]


def _block_sums(fold: PairedFold) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sums over each block's spots of what Pearson needs, and the slide of each block.

    Values are centred first: it changes no correlation and keeps the differences of sums exact.
    """
    true = np.asarray(fold.true)
    slides = np.zeros(len(true), int) if fold.slides is None else np.asarray(fold.slides)
    slides = np.unique(slides, return_inverse=True)[1]
    pairs = np.stack([slides, np.asarray(fold.blocks)], axis=1)
    unique, block = np.unique(pairs, axis=0, return_inverse=True)
    if (np.bincount(unique[:, 0]) < 2).any():
        raise InputError(
            "block bootstrap: every slide needs at least two blocks; choose smaller blocks."
        )
    keep = ~metrics.constant(np.nan_to_num(true.astype(np.float64)))
    some = np.isnan(true).any(axis=0)
    keep &= ~some | ((~np.isnan(true)).sum(axis=0) >= metrics.LEAST_KNOWN)
    membership = sp.csr_matrix(
        (np.ones(len(true)), (block.ravel(), np.arange(len(true)))),
        shape=(len(unique), len(true)),
    )
    known = ~np.isnan(true[:, keep])
    sums, centred = {"n": membership @ known.astype(np.float64)}, {}
    for name in ("pred_a", "pred_b", "true"):
        given = true if name == "true" else getattr(fold, name)
        values = metrics.checked(np.where(np.isnan(true), 0.0, given), true)[0][:, keep]
        mean = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
        centred[name] = np.where(metrics.constant(values) | ~known, 0.0, values - mean)
        sums[name] = membership @ centred[name]
        sums[name + "^2"] = membership @ centred[name] ** 2
    for name in ("pred_a", "pred_b"):
        sums[name + "*true"] = membership @ (centred[name] * centred["true"])
    return sums, unique[:, 0]


def _resample_blocks(
    slide_of_block: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """How often each block is drawn, [num_resamples, blocks]; within slides, with replacement."""
    times = np.zeros((num_resamples, len(slide_of_block)))
    for slide in np.unique(slide_of_block):
        own = np.flatnonzero(slide_of_block == slide)
        times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), num_resamples)
    return times


def _difference(sums: dict[str, np.ndarray], times: np.ndarray) -> np.ndarray:
    """Mean gene-wise Pearson of a minus that of b in each resample, [r]."""
    n = np.maximum(times @ sums["n"], 1.0)
    mean = {name: times @ sums[name] / n for name in ("pred_a", "pred_b", "true")}
    var = {name: times @ sums[name + "^2"] / n - mean[name] ** 2 for name in mean}
    floor = {name: 1e-10 * sums[name + "^2"].sum(axis=0) / sums["n"].sum(axis=0) for name in mean}
    gone = var["true"] <= floor["true"]
    scores = []
    for name in ("pred_a", "pred_b"):
        cov = times @ sums[name + "*true"] / n - mean[name] * mean["true"]
        flat = (var[name] <= floor[name]) | gone
        scale = np.sqrt(np.where(flat, 1.0, var[name] * var["true"]))
        scores.append(np.where(flat, 0.0, cov / scale))
    left = (~gone).sum(axis=1)
    total = (scores[0] - scores[1]).sum(axis=1)
    return np.where(left > 0, total / np.maximum(left, 1), np.nan)
