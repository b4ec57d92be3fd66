"""The forest kept as arrays predicts as scikit-learn's own."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from stfm_jax.regression import trees as tree_ops


def test_arrays_predict_as_the_forest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = np.stack([x[:, 0] * x[:, 1], np.abs(x[:, 2]), rng.normal(size=200)], axis=1)
    forest = RandomForestRegressor(7, min_samples_leaf=2, random_state=0).fit(x[:150], y[:150])
    trees = tree_ops.of_forest(forest)
    np.testing.assert_allclose(tree_ops.predict(trees, x), forest.predict(x), atol=1e-5)
    assert len(trees.roots) == 7 and trees.depth == max(t.tree_.max_depth for t in forest)
