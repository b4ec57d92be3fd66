"""Clusters of expression against a pathologist's labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from stfm_jax.score import domains, expression


def tissue(rng, n=120, noise=0.5):
    """Three regions whose means lie apart, and their labels."""
    which = np.arange(n) % 3
    means = 3 * rng.normal(size=(3, 6))
    return means[which] + noise * rng.normal(size=(n, 6)), np.array(["a", "b", "c"])[which]


def ari(expr, names) -> float:
    return domains.scores([expr], [names])["ari"]


def test_regions_that_lie_apart_are_found_and_shuffled_ones_are_not():
    rng = np.random.default_rng(0)
    expr, names = tissue(rng)
    assert ari(expr, names) == 1.0
    assert abs(ari(rng.permutation(expr), names)) < 0.1
    assert ari(np.ones_like(expr), names) == 0.0
    order = rng.permutation(len(expr))
    assert ari(expr[order], names[order]) == ari(expr, names)


def test_it_is_the_rand_index_of_kmeans_on_the_principal_axes():
    """All axes are kept here, so that clusters are those of the expression itself."""
    expr, names = tissue(np.random.default_rng(1), noise=3.0)
    clusters = KMeans(3, n_init=10, random_state=0).fit_predict(expr)
    found = ari(expr, names)
    assert 0.05 < found < 0.95
    assert found == pytest.approx(adjusted_rand_score(names, clusters), abs=0.05)


def test_spots_and_slides_without_labels_have_no_part():
    rng = np.random.default_rng(2)
    (one, first), (other, second) = tissue(rng, noise=3.0), tissue(rng, noise=2.0)
    undecided = np.where(np.arange(120) < 30, "", first)
    expected = ari(one[30:], first[30:])
    assert ari(one, undecided) == pytest.approx(expected)
    both = domains.scores([one, other, other], [undecided, None, second])
    assert both["ari"] == pytest.approx((expected + ari(other, second)) / 2)
    assert domains.scores([one, other], [None, np.full(120, "a")]) == {}


def test_means_are_scored_beside_what_was_measured_and_draws_are_not():
    rng = np.random.default_rng(3)
    true, names = tissue(rng, noise=2.0)
    rough = true + 2 * rng.normal(size=true.shape)
    added = np.concatenate([true, 100 * rng.normal(size=(120, 1))], axis=1)
    test = expression.TestSet(
        ("s",), [rng.uniform(0, 900, (120, 2))], [added], panel=6, domains=[names]
    )
    row = expression.score_point([np.concatenate([rough, added[:, 6:]], axis=1)], test)
    assert row["ari"] == pytest.approx(ari(rough, names)), "of the panel alone"
    assert row["ari_measured"] == pytest.approx(ari(true, names)) != row["ari"]
    assert "ari" not in expression.score_draws([np.stack([added] * 3)], test, 0)
