"""Every row of a fold of samples at two resolutions: trivial splits, the method, draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import gene_counts
from stfm_jax.errors import InputError
from stfm_jax.eval.split_model import SplitModel
from stfm_jax.models.baselines import splits
from stfm_jax.models.srast import columns
from stfm_jax.ops import simplex


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Of the test samples of a fold, per sample, by row."""

    low: list[np.ndarray]  # [P_i, g] counts of the parents
    true: list[np.ndarray]  # [n_i, g] counts of the children
    points: dict[str, list[np.ndarray]]  # [n_i, g]
    draws: dict[str, list[np.ndarray]]  # [draws, n_i, g], whole counts


def predict(
    model: SplitModel, pairs: Sequence[Pair], genes: Sequence[str], config: Any, mesh: Mesh
) -> Predictions:
    """Splits the counts of some genes of the test samples by every row.

    Args:
      model: that saw none of the samples.
      pairs: the test samples.
      genes: that every sample has.
      config: for seeds and numbers of draws.
      mesh: devices that share the pairs of parent and gene.
    """
    low = [gene_counts(pair.low, genes) for pair in pairs]
    true = [gene_counts(pair.high, genes) for pair in pairs]
    points: dict[str, list[np.ndarray]] = {}
    draws: dict[str, list[np.ndarray]] = {}
    for i, pair in enumerate(pairs):
        for name, value in trivial(pair, low[i]).items():
            points.setdefault(name, []).append(value)
        mean, sampled = whole_sample(model, pair, genes, config, mesh)
        points.setdefault(model.task.name, []).append(mean)
        draws.setdefault(f"{model.task.name}_draw", []).append(sampled)
        rng = np.random.default_rng([config.seed, i])
        for name in ("gaussian", model.task.name):
            thrown = thrown_on(rng, pair, low[i], points[name][i], config.sample.draws)
            draws.setdefault(f"{name}_multinomial", []).append(thrown)
    return Predictions(low, true, points, draws)


def trivial(pair: Pair, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The rows that learn nothing; without interpolation where parents lie on no lattice."""
    try:
        return splits.predictions(pair, counts)
    except InputError:
        return splits.predictions(pair, counts, rows=("uniform", "gaussian"))


def whole_sample(
    model: SplitModel, pair: Pair, genes: Sequence[str], config: Any, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Mean counts [n, g] and draws in whole counts [draws, n, g] of all children."""
    draws, at_once = config.sample.draws, config.srast.pairs_at_once
    mean = np.zeros((pair.high.num_spots, len(genes)))
    sampled = np.zeros((draws, *mean.shape), np.int32)
    wanted = columns(pair, genes)
    for part in model.split(pair, wanted, config.seed, draws, at_once, mesh):
        mask = part.children >= 0
        children, gene = part.children[mask], np.repeat(part.pairs.gene, mask.sum(axis=1))
        mean[children, gene] = simplex.split(part.counts, part.mean, mask)[mask]
        for i, shares in enumerate(part.draws):
            whole = simplex.split_largest_remainder(part.counts, shares, mask)
            sampled[i, children, gene] = whole[mask]
    return mean, sampled


def thrown_on(
    rng: np.random.Generator, pair: Pair, counts: np.ndarray, mean: np.ndarray, draws: int
) -> np.ndarray:
    """The plain way to draws: counts thrown one by one by the mean's shares, [draws, n, g]."""
    table = pair.table()
    mask = table >= 0
    shares = mean[table].transpose(0, 2, 1)
    out = np.zeros((draws, *mean.shape), np.int32)
    for one in out:
        thrown = simplex.split_multinomial(rng, counts.astype(np.int64), shares, mask[:, None])
        one[table[mask]] = thrown.transpose(0, 2, 1)[mask]
    return out
