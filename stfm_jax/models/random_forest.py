"""Random forest on a spot's own features."""

from __future__ import annotations

from sklearn.ensemble import RandomForestRegressor

from stfm_jax.models.forest import LEAF, TRIED, Forest
from stfm_jax.models.regression import Seen
from stfm_jax.regression import trees as tree_ops

TREES = 70  # as HEST's trainer had


class RandomForest(Forest):
    """A row of the comparisons that HEST began with."""

    name = "random_forest"
    around = False

    def grown(self, seen: Seen, seed: int) -> tree_ops.Trees:
        forest = RandomForestRegressor(
            TREES, min_samples_leaf=LEAF, max_features=TRIED, n_jobs=-1, random_state=seed
        )
        return tree_ops.of_forest(forest.fit(*seen.pooled))
