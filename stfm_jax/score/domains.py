"""Spatial domains: clusters of expression against a pathologist's labels, slide by slide."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from threadpoolctl import threadpool_limits

from stfm_jax.ops import metrics

AXES = 10  # principal axes that are clustered [ours]
NEIGHBORS = 15  # of Leiden's graph, as scanpy has it
SEED = 0
_RESOLUTIONS, _STEPS = (1e-3, 1e2), 24  # between which the one that gives k clusters is sought


def scores(expr: Sequence[np.ndarray], domains: Sequence[np.ndarray | None]) -> dict[str, float]:
    """Adjusted Rand index of clusters with the labels, mean over the slides that have labels.

    `ari`: k-means, k the number of labels, on AXES principal axes of the labelled spots'
    expression. `ari_leiden`: Leiden, where igraph is installed (the extra `bio`), at the resolution
    that gives k clusters. The labels say how many, and nothing else. [ours]

    Args:
      expr: per slide [n_i, g], measured or predicted.
      domains: per slide [n_i] labels, "" of spots without, or None.

    Returns:
      Nothing where no slide has two labels; 0 where expression is the same everywhere.
    """
    labelled = [
        (values[names != ""], names[names != ""])
        for values, names in zip(expr, domains, strict=True)
        if names is not None
    ]
    found = [_of_slide(*slide) for slide in labelled if len(np.unique(slide[1])) > 1]
    return {name: float(np.mean([each[name] for each in found])) for name in _ways() if found}


def _ways() -> dict:
    leiden = {"ari_leiden": _leiden} if importlib.util.find_spec("igraph") else {}
    return {"ari": _kmeans, **leiden}


def _of_slide(expr: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    expr, k = np.asarray(expr, np.float64), len(np.unique(labels))
    if metrics.constant(expr).all():
        return dict.fromkeys(_ways(), 0.0)
    axes = min(AXES, *np.subtract(expr.shape, (1, 0)))
    x = PCA(axes, svd_solver="full").fit_transform(expr)
    clusters = {name: cluster(x, k) for name, cluster in _ways().items()}
    return {name: float(adjusted_rand_score(labels, each)) for name, each in clusters.items()}


def _kmeans(x: np.ndarray, k: int) -> np.ndarray:
    with threadpool_limits(1, "openmp"):  # of a few hundred spots, threads wait for one another
        return KMeans(k, n_init=10, random_state=SEED).fit_predict(x)


def _leiden(x: np.ndarray, k: int) -> np.ndarray:
    """Clusters by modularity of the graph of nearest neighbours; as near to k as there are."""
    import igraph  # of the extra `bio`

    near = kneighbors_graph(x, min(NEIGHBORS, len(x) - 1))
    graph = igraph.Graph(len(x), np.stack(sp.triu(near + near.T).nonzero(), axis=1))

    @functools.cache
    def at(resolution: float) -> np.ndarray:
        igraph.set_random_number_generator(random.Random(SEED))
        found = graph.community_leiden("modularity", resolution=resolution, n_iterations=-1)
        return np.array(found.membership)

    low, high = np.log(_RESOLUTIONS)
    tried = []
    for _ in range(_STEPS):
        tried.append(at(float(np.exp((low + high) / 2))))
        number = tried[-1].max() + 1
        if number == k:
            break
        low, high = ((low + high) / 2, high) if number < k else (low, (low + high) / 2)
    return min(tried, key=lambda each: abs(each.max() + 1 - k))
