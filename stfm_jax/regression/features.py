"""What regressors (and small networks) see of a slide: standardised, reduced, neighbourhood-wide.

Standardising per slide uses the slide's own images (no expression); it takes out staining.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from stfm_jax.errors import InputError
from stfm_jax.ops.neighbors import knn_graph, neighbor_mean

STANDARDIZATIONS = ("slide", "training")
CLIP = 6.0  # standard deviations; one odd patch must not rule its neighbourhood [ours]


class FeatureTransform(NamedTuple):
    """Fitted on training slides; arrays only."""

    per_slide: np.ndarray  # [] 1.0 to standardise each slide by itself, 0.0 by mean and std below
    mean: np.ndarray  # [f]
    std: np.ndarray  # [f]
    components: np.ndarray  # [f, p] principal axes of the standardised features


def fit_transform(
    features: Sequence[np.ndarray], standardize: str, num_components: int
) -> FeatureTransform:
    """Fits scaling and principal axes on the features of the training slides.

    Args:
      features: per slide [n_i, f].
      standardize: "slide" (each by itself) or "training" (all by the training moments).
      num_components: axes kept, at most f and the number of spots.
    """
    if standardize not in STANDARDIZATIONS:
        raise InputError(
            f"config.data.standardize must be one of {', '.join(STANDARDIZATIONS)}, found "
            f"{standardize!r}."
        )
    pooled = np.concatenate(features).astype(np.float64)
    mean, std = _moments(pooled)
    f = pooled.shape[1]
    transform = FeatureTransform(
        np.float32(standardize == "slide"),
        mean.astype(np.float32),
        std.astype(np.float32),
        np.zeros((f, 0), np.float32),
    )
    standardized = np.concatenate([standardized_features(transform, x) for x in features])
    p = min(num_components, f, len(standardized) - 1)
    pca = PCA(p, svd_solver="full" if f <= 2048 else "randomized", random_state=0)
    return transform._replace(components=pca.fit(standardized).components_.T.astype(np.float32))


def standardized_features(transform: FeatureTransform, features: np.ndarray) -> np.ndarray:
    """[n, f] float32 with zero mean and unit variance, clipped at CLIP."""
    if features.shape[1] != len(transform.mean):
        raise InputError(
            f"expected features of width {len(transform.mean)} as in training, found "
            f"{features.shape[1]}; embed the slide with the encoder the model was trained on."
        )
    mean, std = (
        _moments(features.astype(np.float64))
        if transform.per_slide
        else (transform.mean, transform.std)
    )
    return np.clip((features - mean) / std, -CLIP, CLIP).astype(np.float32)


def own_features(transform: FeatureTransform, features: np.ndarray) -> np.ndarray:
    """Principal components [n, p] of a spot's own standardised features."""
    return standardized_features(transform, features) @ transform.components


def context_features(
    transform: FeatureTransform,
    features: np.ndarray,
    coords: np.ndarray,
    scales: Sequence[int],
) -> np.ndarray:
    """Own principal components and their means over the nearest spots, [n, p (1 + scales)].

    Args:
      transform: fitted.
      features: [n, f].
      coords: [n, 2], any unit.
      scales: sizes of the neighbourhoods, the spot itself counted; neighbours tied with the last
        are kept; a slide with fewer spots is averaged as a whole.
    """
    own = own_features(transform, features)
    return np.concatenate([own, *(window_mean(own, coords, s) for s in scales)], axis=1)


def window_mean(values: np.ndarray, coords: np.ndarray, size: int) -> np.ndarray:
    """Mean [n, ...] of the spot and its `size - 1` nearest others, ties kept."""
    k = min(size, len(values)) - 1
    return neighbor_mean(values, knn_graph(coords, k, include_self=True)) if k else values


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    std = x.std(axis=0)
    return x.mean(axis=0), np.where(std > 1e-8, std, 1.0)
