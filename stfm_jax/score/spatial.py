"""How like tissue a prediction varies in space: the same score of every problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.ops import metrics
from stfm_jax.ops.neighbors import Graph, knn_graph

NEIGHBORS = 8  # of a spot, ties kept


def graph(coords_um: np.ndarray, include_self: bool = False) -> Graph:
    """Each spot's neighbours on a slide, places [n, 2], by which scores and controls go."""
    return knn_graph(coords_um, min(NEIGHBORS, len(coords_um) - 1), include_self)


def moran(
    prediction: Sequence[np.ndarray], true: Sequence[np.ndarray], coords_um: Sequence[np.ndarray]
) -> metrics.MoranScores:
    """Moran's I per gene against the measured one, means over slides [n_i, g]."""
    parts = zip(prediction, true, coords_um, strict=True)
    found = [metrics.moran_scores(p, y, *graph(c)) for p, y, c in parts]
    return metrics.MoranScores(*(float(np.mean(each)) for each in zip(*found, strict=True)))
