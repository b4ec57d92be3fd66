"""Forests and boosted regression trees, grown by scikit-learn and kept as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)


class Trees(NamedTuple):
    """All nodes of all trees, one after the other; a leaf is its own child."""

    roots: np.ndarray  # [t]
    children: np.ndarray  # [m, 2] where to go if the feature is at most the threshold, and if not
    feature: np.ndarray  # [m]
    threshold: np.ndarray  # [m]
    value: np.ndarray  # [m, g] float32
    depth: int  # of the deepest tree


class Boosted(NamedTuple):
    """Trees of a gene that are added up, those of one gene after those of another, as many each."""

    trees: Trees  # with values [m, 1]
    start: np.ndarray  # [g] what each gene's trees are added to


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


def of_boosted(boosted: Sequence[HistGradientBoostingRegressor]) -> Boosted:
    """The arrays of fitted regressors, one for each gene, of as many trees each.

    Of features without gaps and without categories; scikit-learn has no public name for the trees.
    """
    nodes = [tree.nodes for each in boosted for (tree,) in each._predictors]
    roots = np.cumsum([0, *map(len, nodes[:-1])])
    children = []
    for tree, root in zip(nodes, roots, strict=True):
        both = np.stack([tree["left"], tree["right"]], axis=1).astype(np.int64)
        own = np.arange(len(tree))[:, None]
        children.append(root + np.where(tree["is_leaf"][:, None] > 0, own, both))
    every = np.concatenate(nodes)
    trees = Trees(
        roots.astype(np.int32),
        np.concatenate(children).astype(np.int32),
        every["feature_idx"].astype(np.int32),
        every["num_threshold"].astype(np.float64),
        every["value"][:, None].astype(np.float32),
        int(every["depth"].max()),
    )
    start = np.array([each._baseline_prediction.item() for each in boosted], np.float32)
    return Boosted(trees, start)


def predict(fitted: Trees | Boosted, x: np.ndarray) -> np.ndarray:
    """Expression [n, g] for features [n, f]: the mean over a forest's trees, or boosted ones' sum.

    All spots go down one tree together.
    """
    boosted = isinstance(fitted, Boosted)
    trees = fitted.trees if boosted else fitted
    out = np.zeros((len(x), len(fitted.start) if boosted else trees.value.shape[1]), np.float32)
    x = x.astype(np.float32)
    per_gene = len(trees.roots) // out.shape[1]
    for number, root in enumerate(trees.roots):
        columns = slice(number // per_gene, number // per_gene + 1) if boosted else slice(None)
        out[:, columns] += trees.value[_leaves(trees, x, root)]
    return out + fitted.start if boosted else out / len(trees.roots)


def _leaves(trees: Trees, x: np.ndarray, root: int) -> np.ndarray:
    """The leaf of one tree [n] that each spot comes to."""
    node, spots = np.full(len(x), root), np.arange(len(x))
    for _ in range(trees.depth):
        right = x[spots, trees.feature[node]] > trees.threshold[node]
        node = trees.children[node, right.astype(np.int8)]
    return node


def individual_data(trees: Trees, leaf: int) -> dict[str, str]:
    """What they hold of single training spots; `leaf`: spots of a leaf at least."""
    leaves = int((trees.children[:, 0] == np.arange(len(trees.children))).sum())
    return {
        "trees": (
            f"{leaves} leaves of {len(trees.roots)} trees, each with the mean of {leaf} or a few "
            "more training spots; thresholds between the features of two of them"
        )
    }
