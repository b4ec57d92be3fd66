"""Scores of predicted expression: every row on the same test spots of a fold.

A row is a point prediction per test slide, with draws where the method is generative.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from stfm_jax.ops import metrics
from stfm_jax.score import domains
from stfm_jax.score.spatial import moran

LEVELS = tuple(i / 10 for i in range(1, 10))  # of central intervals
NUM_SINGLE_DRAWS = 8  # draws scored one by one; their mean score is the row's


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The test slides of a fold."""

    names: tuple[str, ...]
    coords_um: list[np.ndarray]  # per slide [n_i, 2]
    expr: list[np.ndarray]  # per slide [n_i, g], the panel's genes and behind them the added ones
    # Per slide [n_i, g], what was measured around its spots on neighbouring sections; of stacks
    around: list[np.ndarray] | None = None
    # Per slide [n_i, p], Pearson residuals of the counts: what log targets have of depth is gone
    residuals: list[np.ndarray] | None = None
    panel: int | None = None  # p, genes that scores are averaged over, the first; None: all
    apart: Mapping[str, int] = dataclasses.field(default_factory=dict)  # column by gene
    # Weights of the genes [g] by programme, see `score.programmes`
    programmes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # Per slide [n_i], a pathologist's labels, see `score.domains`; None: of no slide
    domains: Sequence[np.ndarray | None] | None = None

    @property
    def pooled(self) -> np.ndarray:
        """The panel's genes of all spots, [n, p]."""
        return np.concatenate(self.of_panel(self.expr))

    @functools.cached_property
    def domains_measured(self) -> dict[str, float]:
        """What clusters of the measured expression have; smoother ones may have more."""
        found = domains.scores(self.of_panel(self.expr), self.domains)
        return {f"{name}_measured": value for name, value in found.items()}

    def of_panel(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The panel's genes of arrays [..., g]."""
        return [each[..., : self.panel] for each in values]


def score_point(prediction: Sequence[np.ndarray], test: TestSet) -> dict[str, float]:
    """Accuracy and structure of a point prediction, per slide [n_i, g].

    Per-gene scores but `pearson_slide` are over all test spots together and averaged over genes, as
    HEST does. The CRPS of a point is its absolute error. Moran's scores are averaged over slides.
    Genes that are scored apart have their Pearson, `pearson:GENE`, and no part in any mean.
    """
    whole, prediction, expr = prediction, test.of_panel(prediction), test.of_panel(test.expr)
    pred, true = np.concatenate(prediction), test.pooled
    per_gene = {
        "pearson": metrics.pearson(pred, true),
        "spearman": metrics.spearman(pred, true),
        "mse": metrics.mse(pred, true),
        "mae": metrics.mae(pred, true),
        "pearson_spot": metrics.pearson_spot(pred, true),
    }
    per_gene["pearson_slide"] = pearson_slide(prediction, expr)
    scores = {name: metrics.mean_over_genes(values)[0] for name, values in per_gene.items()}
    scores["gene_structure"] = metrics.gene_structure(pred, true)
    scores["moran"], scores["svg"] = moran(prediction, expr, test.coords_um)
    if test.around is not None:
        parts = zip(prediction, expr, test.of_panel(test.around), strict=True)
        scores["consistency"] = float(np.mean([metrics.consistency(*part) for part in parts]))
    if test.residuals is not None:
        found = pearson_slide(prediction, test.residuals)
        scores["residual"] = metrics.mean_over_genes(found)[0]
    scores["crps"] = scores["mae"]
    if test.apart:
        columns = list(test.apart.values())
        both = (np.concatenate(values)[:, columns] for values in (whole, test.expr))
        scores |= {
            f"pearson:{gene}": float(value)
            for gene, value in zip(test.apart, metrics.pearson(*both), strict=True)
        }
    if test.domains is not None:
        scores |= domains.scores(prediction, test.domains) | test.domains_measured
    return scores | (_of_programmes(whole, test) if test.programmes else {})


def _of_programmes(prediction: Sequence[np.ndarray], test: TestSet) -> dict[str, float]:
    """`programmes:NAME`, Pearson of the spots' score as `pearson_slide`; `programmes`, the mean."""
    weights = np.stack(list(test.programmes.values()), axis=1)
    spots = ([each @ weights for each in values] for values in (prediction, test.expr))
    found = pearson_slide(*spots)
    each = {f"programmes:{n}": float(r) for n, r in zip(test.programmes, found, strict=True)}
    return {"programmes": metrics.mean_over_genes(found)[0], **each}


def pearson_slide(prediction: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
    """Pearson correlation per gene within each slide [n_i, g], the mean over slides: [g]. [ours]

    What slides differ by as a whole has no part in it. A slide in which a gene is constant is left
    out of that gene's mean; NaN where it is constant in all of them.
    """
    found = np.stack([metrics.pearson(p, y) for p, y in zip(prediction, true, strict=True)])
    known = ~np.isnan(found)
    number = known.sum(axis=0)
    mean = np.where(known, found, 0.0).sum(axis=0) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def score_draws(draws: Sequence[np.ndarray], test: TestSet, seed: int) -> dict[str, float]:
    """Scores of single draws (the mean over several), and of the ensemble's calibration.

    Args:
      draws: per slide [m, n_i, g].
      test: the slides.
      seed: of the random ranks at ties.
    """
    count = min(NUM_SINGLE_DRAWS, len(draws[0]))
    unlabelled = dataclasses.replace(test, domains=None)  # clustering takes longer than all else
    singles = [score_point([d[i] for d in draws], unlabelled) for i in range(count)]
    scores = {name: float(np.mean([s[name] for s in singles])) for name in singles[0]}
    pooled, true = np.concatenate(test.of_panel(draws), axis=1), test.pooled
    scores["crps"] = float(np.mean(metrics.crps(pooled, true)))
    if len(pooled) >= metrics.MIN_DRAWS_FOR_COVERAGE:
        covered = metrics.coverage(pooled, true, 0.8, np.random.default_rng(seed))
        scores["coverage80"] = float(np.mean(covered))
        scores["width80"] = relative_width(pooled, true)
    return scores


def reliability(draws: Sequence[np.ndarray], true: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """How much central intervals of draws cover of what was measured.

    Args:
      draws: per slide [m, n_i, g].
      true: [n, g].
      seed: of the random ranks at ties.

    Returns:
      `levels` [l] nominal ones, `covered` [l] shares of all spots and genes; nothing of few draws.
    """
    pooled = np.concatenate(draws, axis=1)
    if len(pooled) < metrics.MIN_DRAWS_FOR_COVERAGE:
        return {}
    covered = metrics.coverage(pooled, true, LEVELS, np.random.default_rng(seed))
    return {"levels": np.array(LEVELS), "covered": covered.mean(axis=1)}


def relative_width(draws: np.ndarray, true: np.ndarray) -> float:
    """Width of the 80 % intervals of draws [m, n, g], over that of the gene's own over all measured
    spots [n, g]: above 1, a guess that knows no spot but the genes' spread is tighter. Mean over
    spots and genes; genes that have none, since most spots measure the same, are left out. [ours]
    """
    own = np.subtract(*np.quantile(true, (0.9, 0.1), axis=0))
    drawn = np.subtract(*(metrics.quantiles(draws, p) for p in (0.9, 0.1))).mean(axis=0)
    wide = own > 0
    return float(np.mean(drawn[wide] / own[wide])) if wide.any() else float("nan")
