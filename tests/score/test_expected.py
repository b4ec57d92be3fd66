"""Scores to be expected of a gene on a further slide."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from stfm_jax.score import expected

ROWS = pd.DataFrame(
    [
        (0, 0, "NA", "ridge", 0.4, False),
        (0, 1, "NA", "ridge", 0.6, False),
        (1, 0, "NA", "ridge", 0.7, False),
        (2, 0, "NA", "ridge", 0.9, False),
        (0, 0, "NA", "mean", 0.1, False),
        (0, 0, "ONE", "ridge", 0.3, False),
        (1, 0, "ONE", "ridge", np.nan, True),
    ],
    columns=["fold", "seed", "gene", "method", "pearson", "constant"],
)


@pytest.fixture
def found(tmp_path):
    ROWS.to_csv(tmp_path / "per_gene.csv", index=False)
    return expected.of_workdir(tmp_path, "ridge")


def test_mean_over_folds_of_the_mean_over_seeds(found):
    """A gene called NA is a gene."""
    scores = np.array([0.5, 0.7, 0.9])
    assert found["NA"].pearson == pytest.approx(0.7) and found["NA"].folds == 3
    reach = scipy.stats.t.ppf(0.9, 2) * scores.std(ddof=1) * np.sqrt(4 / 3)
    assert found["NA"].low == pytest.approx(0.7 - reach)
    assert found["NA"].high == 1.0


def test_one_fold_has_no_interval(found):
    assert found["ONE"].pearson == pytest.approx(0.3) and np.isnan(found["ONE"].low)
    assert np.isnan(found["ONE"].high) and found["ONE"].folds == 1


def test_columns(found, tmp_path):
    made = expected.columns(found, ["ONE", "NEW"])
    names = ["expected_pearson", "expected_pearson_q10", "expected_pearson_q90", "expected_folds"]
    assert list(made.columns) == names
    assert made.loc["ONE", "expected_pearson"] == pytest.approx(0.3)
    assert np.isnan(made.loc["NEW", "expected_pearson"]) and made.loc["NEW", "expected_folds"] == 0
    assert expected.of_workdir(tmp_path / "none", "ridge") == {}


def test_a_further_score_lies_inside_as_often_as_said():
    rng = np.random.default_rng(0)
    inside = []
    for scores in rng.normal(0.3, 0.1, size=(2000, 6)):
        known = expected._expected(scores[:5])
        inside.append(known.low <= scores[5] <= known.high)
    assert np.mean(inside) == pytest.approx(expected.INTERVAL, abs=0.03)
