"""Extremely randomised trees on own and neighbourhoods' features."""

from __future__ import annotations

from sklearn.ensemble import ExtraTreesRegressor

from stfm_jax.models.forest import LEAF, TRIED, Forest
from stfm_jax.models.regression import Seen, scaled
from stfm_jax.regression import targets
from stfm_jax.regression import trees as tree_ops

TREES = 150


class ExtraTrees(Forest):
    """Extra-trees (Geurts et al. 2006), fitted to targets in units of their slide [ours]."""

    name = "extra_trees"
    around = True

    def grown(self, seen: Seen, seed: int) -> tree_ops.Trees:
        seen, scale = scaled(seen)
        forest = ExtraTreesRegressor(
            TREES, min_samples_leaf=LEAF, max_features=TRIED, n_jobs=-1, random_state=seed
        )
        trees = tree_ops.of_forest(forest.fit(*seen.pooled))
        return trees._replace(value=targets.back(trees.value, scale).astype(trees.value.dtype))
