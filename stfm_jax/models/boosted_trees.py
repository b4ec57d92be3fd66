"""Gradient-boosted trees on a spot's own features."""

from __future__ import annotations

from typing import NamedTuple

from joblib import Parallel, delayed
from sklearn.ensemble import HistGradientBoostingRegressor

from stfm_jax.models.forest import Forest
from stfm_jax.models.regression import Seen
from stfm_jax.regression import trees as tree_ops
from stfm_jax.regression.features import FeatureTransform

TREES, RATE, DEPTH = 100, 0.1, 3  # as HEST's trainer has them for XGBoost, and the next two
L2 = 1.0
TRIED = 0.8  # share of the features tried; HEST's of a tree, scikit-learn's of a split
LEAF = 20  # spots at least, scikit-learn's own; XGBoost has no such bound


class State(NamedTuple):
    """Boosted trees fitted to training slides."""

    transform: FeatureTransform
    trees: tree_ops.Boosted


class BoostedTrees(Forest):
    """Trees for each gene, fitted to what the earlier ones leave, by histograms of the features.

    Scikit-learn has no draws of the spots for a tree, of which HEST's are of 80 %.
    """

    name = "boosted_trees"
    around = False
    State = State

    def grown(self, seen: Seen, seed: int) -> tree_ops.Boosted:
        """One gene to a core: the cores together at one are slower, on few spots by far."""
        x, y = seen.pooled
        fits = Parallel(n_jobs=-1)(delayed(_boosted)(x, of_gene, seed) for of_gene in y.T)
        return tree_ops.of_boosted(fits)

    def individual_data(self, state: State) -> dict[str, str]:
        return tree_ops.individual_data(state.trees.trees, LEAF)


def _boosted(x, y, seed: int) -> HistGradientBoostingRegressor:
    """Fitted to features [n, f] and the expression of one gene [n]."""
    return HistGradientBoostingRegressor(
        max_iter=TREES,
        learning_rate=RATE,
        max_depth=DEPTH,
        max_leaf_nodes=None,
        min_samples_leaf=LEAF,
        l2_regularization=L2,
        max_features=TRIED,
        early_stopping=False,
        random_state=seed,
    ).fit(x, y)
