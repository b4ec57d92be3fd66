"""Forests of regression trees, grown by scikit-learn and kept as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor


class Trees(NamedTuple):
    """All nodes of all trees, one after the other; a leaf is its own child."""

    roots: np.ndarray  # [t]
    children: np.ndarray  # [m, 2] where to go if the feature is at most the threshold, and if not
    feature: np.ndarray  # [m]
    threshold: np.ndarray  # [m]
    value: np.ndarray  # [m, g] float32
    depth: int  # of the deepest tree


def of_forest(forest: RandomForestRegressor | ExtraTreesRegressor) -> Trees:
    """The arrays of a fitted forest of several outputs."""
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


def predict(trees: Trees, x: np.ndarray) -> np.ndarray:
    """Mean over the trees [n, g] for features [n, f]: all spots go down one tree together."""
    out = np.zeros((len(x), trees.value.shape[1]), np.float32)
    x, spots = x.astype(np.float32), np.arange(len(x))
    for root in trees.roots:
        node = np.full(len(x), root)
        for _ in range(trees.depth):
            right = x[spots, trees.feature[node]] > trees.threshold[node]
            node = trees.children[node, right.astype(np.int8)]
        out += trees.value[node]
    return out / len(trees.roots)


def individual_data(trees: Trees, leaf: int) -> dict[str, str]:
    """What they hold of single training spots; `leaf`: spots of a leaf at least."""
    leaves = int((trees.children[:, 0] == np.arange(len(trees.children))).sum())
    return {
        "trees": (
            f"{leaves} leaves of {len(trees.roots)} trees, each with the mean of {leaf} or a few "
            "more training spots; thresholds between the features of two of them"
        )
    }
