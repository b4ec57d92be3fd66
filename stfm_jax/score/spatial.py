"""How like tissue a prediction varies in space: the same score of every problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.ops import metrics
from stfm_jax.ops.neighbors import knn_graph

NEIGHBORS = 8  # of a spot, ties kept


def moran(
    prediction: Sequence[np.ndarray], true: Sequence[np.ndarray], coords_um: Sequence[np.ndarray]
) -> float:
    """Agreement of Moran's I per gene with the measured one, the mean over slides [n_i, g]."""
    parts = zip(prediction, true, coords_um, strict=True)
    found = [
        metrics.moran_agreement(p, y, *knn_graph(c, min(NEIGHBORS, len(c) - 1)))
        for p, y, c in parts
    ]
    return float(np.mean(found))
