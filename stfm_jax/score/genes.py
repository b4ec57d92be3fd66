"""Scores gene by gene for per_gene.csv, and the spatial blocks that comparisons resample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stfm_jax.ops import metrics
from stfm_jax.ops.bootstrap import spatial_blocks

PER_GENE_COLUMNS = ("fold", "gene", "method", "pearson", "spearman", "mse", "constant")


def gene_rows(
    fold: int, method: str, pred: np.ndarray, true: np.ndarray, genes: Sequence[str]
) -> list[dict]:
    """Rows of per_gene.csv for a point prediction [n, g] of all test spots of a fold."""
    found = metrics.pearson(pred, true), metrics.spearman(pred, true), metrics.mse(pred, true)
    return per_gene_rows(fold, method, genes, *found)


def per_gene_rows(
    fold: int | str,
    method: str,
    genes: Sequence[str],
    pearson: np.ndarray,
    spearman: np.ndarray,
    mse: np.ndarray,
) -> list[dict[str, Any]]:
    """Rows of per_gene.csv for one method in one fold.

    Args:
      fold: its number or name.
      method: method name, as in metrics.json.
      genes: [g] names.
      pearson: [g] from `ops.metrics.pearson`; NaN marks a gene constant in the test data.
      spearman: [g].
      mse: [g].

    Returns:
      A dictionary per gene with the keys of PER_GENE_COLUMNS, in that order.
    """
    return [
        dict(
            zip(
                PER_GENE_COLUMNS,
                (fold, str(gene), method, float(p), float(s), float(m), bool(np.isnan(p))),
                strict=True,
            )
        )
        for gene, p, s, m in zip(genes, pearson, spearman, mse, strict=True)
    ]


def blocks(coords_um: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Spatial block [n] and slide [n] of every spot of some slides, for the paired bootstrap."""
    labels = [spatial_blocks(coords) for coords in coords_um]
    slides = np.repeat(np.arange(len(labels)), [len(b) for b in labels])
    return np.concatenate(labels), slides
