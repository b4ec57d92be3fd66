"""Predictions that know the truth, whose order is known before any score is taken.

After the control methods of Open Problems (openproblems.bio); which ones is our decision. A score
that does not set the positive ones above the negative ones does not say how well spots are told
apart. The training mean, the other negative control, is a method (`models/mean.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.ops.neighbors import neighbor_mean
from stfm_jax.score.spatial import graph

POSITIVE = ("truth_smooth", "neighbours_true")
NEGATIVE = ("shuffle_spots", "shuffle_genes")
NAMES = (*POSITIVE, *NEGATIVE)


def predictions(
    true: Sequence[np.ndarray], coords_um: Sequence[np.ndarray], seed: int
) -> dict[str, list[np.ndarray]]:
    """What the controls predict, by their NAMES, per slide [n_i, g].

    `truth_smooth` is each spot's mean over itself and its neighbours, those of Moran's I,
    `neighbours_true` that over the neighbours alone. `shuffle_spots` has the rows of the truth in
    another order, `shuffle_genes` each column in an order of its own, slide by slide.

    Args:
      true: per slide [n_i, g], what was measured.
      coords_um: per slide [n_i, 2].
      seed: of the orders.
    """
    rng = np.random.default_rng(seed)
    slides = list(zip(true, coords_um, strict=True))
    return {
        "truth_smooth": [neighbor_mean(y, graph(c, include_self=True)) for y, c in slides],
        "neighbours_true": [neighbor_mean(y, graph(c)) for y, c in slides],
        "shuffle_spots": [rng.permutation(y) for y in true],
        "shuffle_genes": [rng.permuted(y, axis=0) for y in true],
    }
