"""Forests and boosted trees kept as arrays predict as scikit-learn's own."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

from stfm_jax.regression import trees as tree_ops


def test_arrays_predict_as_the_forest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], np.abs(x[:, 2]), rng.normal(size=200)], axis=1)
    forest = RandomForestRegressor(7, min_samples_leaf=2, random_state=0).fit(x[:150], y[:150])
    trees = tree_ops.of_forest(forest)
    np.testing.assert_allclose(tree_ops.predict(trees, x), forest.predict(x), atol=1e-5)
    assert len(trees.roots) == 7 and trees.depth == max(t.tree_.max_depth for t in forest)


def test_arrays_predict_as_the_boosted_trees():
    """Of three genes: one has structure, one is noise, one is constant and never split."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], rng.normal(size=200), np.full(200, 2.0)], axis=1)
    boosted = [
        HistGradientBoostingRegressor(max_iter=9, max_depth=3).fit(x[:150], of_gene[:150])
        for of_gene in y.T
    ]
    kept = tree_ops.of_boosted(boosted)
    theirs = np.stack([each.predict(x) for each in boosted], axis=1)
    np.testing.assert_allclose(tree_ops.predict(kept, x), theirs, atol=1e-5)
    assert theirs[:, 0].std() > 0.1 and (theirs[:, 2] == 2.0).all()
    assert len(kept.trees.roots) == 27 and kept.trees.depth == 3


def test_leaves_are_counted():
    x = np.random.default_rng(1).normal(size=(50, 2))
    forest = RandomForestRegressor(3, min_samples_leaf=5, random_state=0).fit(x, np.sin(x))
    said = tree_ops.individual_data(tree_ops.of_forest(forest), 5)["trees"]
    leaves = sum(tree.tree_.n_leaves for tree in forest)
    assert said.startswith(f"{leaves} leaves of 3 trees, each with the mean of 5 or a few")
