"""How well a gene is to be expected on a further slide, from the slides that were left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

INTERVAL = 0.8  # of the scores of further folds


class Expected(NamedTuple):
    """Pearson of one gene."""

    pearson: float  # mean over the folds
    low: float  # a further fold's lies between with a probability of INTERVAL; nan of one fold
    high: float
    folds: int  # that the gene was scored in


def of_workdir(workdir: Path, method: str) -> dict[str, Expected]:
    """By gene, from per_gene.csv; seeds are averaged. Empty where there is none."""
    path = workdir / "per_gene.csv"
    if not path.exists():
        return {}
    rows = pd.read_csv(path, dtype={"gene": str, "method": str}, keep_default_na=False)
    rows = rows[(rows["method"] == method) & (rows["constant"].astype(str) == "False")]
    rows = rows.assign(pearson=pd.to_numeric(rows["pearson"], errors="coerce")).dropna(
        subset=["pearson"]
    )
    by_fold = rows.groupby(["gene", "fold"])["pearson"].mean()
    return {gene: _expected(scores.to_numpy()) for gene, scores in by_fold.groupby(level="gene")}


def _expected(scores: np.ndarray) -> Expected:
    """Mean, and what a further score would lie between if they were normal."""
    n, mean = len(scores), float(scores.mean())
    if n == 1:
        return Expected(mean, np.nan, np.nan, 1)
    t = scipy.stats.t.ppf((1 + INTERVAL) / 2, n - 1)
    reach = float(t * scores.std(ddof=1) * np.sqrt(1 + 1 / n))
    return Expected(mean, max(mean - reach, -1.0), min(mean + reach, 1.0), n)


def columns(expected: Mapping[str, Expected], genes: list[str]) -> pd.DataFrame:
    """Columns for `var` of a prediction; nan where a gene was in no fold."""
    unknown = Expected(np.nan, np.nan, np.nan, 0)
    found = [expected.get(gene, unknown) for gene in genes]
    low, high = (f"expected_pearson_q{round(50 * (1 + side * INTERVAL))}" for side in (-1, 1))
    return pd.DataFrame(
        {
            "expected_pearson": [each.pearson for each in found],
            low: [each.low for each in found],
            high: [each.high for each in found],
            "expected_folds": [each.folds for each in found],
        },
        index=pd.Index(genes),
    )
