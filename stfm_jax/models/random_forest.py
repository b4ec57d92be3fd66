"""Random forest on a spot's own features, with scikit-learn's trees kept as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from stfm_jax.models import regression
from stfm_jax.models.method import Genes, Method, Prediction, Request, Run, Section
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.regression.features import FeatureTransform

TREES = 70  # as HEST's trainer had; a third of the features tried at a split is ours
LEAF = 3  # spots at least; smaller leaves cost memory [ours]


class Trees(NamedTuple):
    """All nodes of all trees, one after the other; a leaf is its own child."""

    roots: np.ndarray  # [t]
    children: np.ndarray  # [m, 2] where to go if the feature is at most the threshold, and if not
    feature: np.ndarray  # [m]
    threshold: np.ndarray  # [m]
    value: np.ndarray  # [m, g] float32
    depth: int  # of the deepest tree


class State(NamedTuple):
    """A forest fitted to training slides."""

    transform: FeatureTransform
    trees: Trees


class RandomForest(Method):
    """A row of the comparisons that HEST began with."""

    name = "random_forest"
    Settings = RegressionSettings
    State = State

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        seen = regression.seen_of(self.settings, slides, genes.scored, False, run.seed, run.once)
        forest = RandomForestRegressor(
            TREES, min_samples_leaf=LEAF, max_features=1 / 3, n_jobs=-1, random_state=run.seed
        )
        return State(seen.transform, _trees(forest.fit(*seen.pooled)))

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        blocks = regression.feature_blocks(self.settings, state.transform, case.slide, False)
        return Prediction((spots, _mean_of_trees(state.trees, x)) for spots, x in blocks)

    def individual_data(self, state: State) -> dict[str, str]:
        trees = state.trees
        nodes = np.arange(len(trees.children))
        leaves = int((trees.children[:, 0] == nodes).sum())
        return {
            "trees": (
                f"{leaves} leaves of {len(trees.roots)} trees, each with the mean of {LEAF} or a "
                "few more training spots; thresholds half-way between the features of two of them"
            )
        }


def _trees(forest: RandomForestRegressor) -> Trees:
    trees = [estimator.tree_ for estimator in forest.estimators_]
    roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    children = []
    for tree, root in zip(trees, roots, strict=True):
        both = np.stack([tree.children_left, tree.children_right], axis=1)
        own = np.arange(tree.node_count)[:, None]
        children.append(root + np.where(both < 0, own, both))
    return Trees(
        roots.astype(np.int32),
        np.concatenate(children).astype(np.int32),
        np.maximum(np.concatenate([tree.feature for tree in trees]), 0).astype(np.int32),
        np.concatenate([tree.threshold for tree in trees]),
        np.concatenate([tree.value[..., 0] for tree in trees]).astype(np.float32),
        max(tree.max_depth for tree in trees),
    )


def _mean_of_trees(trees: Trees, x: np.ndarray) -> np.ndarray:
    """Prediction [n, g] of features [n, f]: all spots go down one tree together."""
    out = np.zeros((len(x), trees.value.shape[1]), np.float32)
    x, spots = x.astype(np.float32), np.arange(len(x))
    for root in trees.roots:
        node = np.full(len(x), root)
        for _ in range(trees.depth):
            right = x[spots, trees.feature[node]] > trees.threshold[node]
            node = trees.children[node, right.astype(np.int8)]
        out += trees.value[node]
    return out / len(trees.roots)
