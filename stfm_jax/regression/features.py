"""What regressors (and small networks) see of a slide: standardised, reduced, neighbourhood-wide.

Standardising per slide uses the slide's own images (no expression); it takes out staining.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from stfm_jax.errors import InputError
from stfm_jax.ops.neighbors import knn_graph, neighbor_mean

STANDARDIZATIONS = ("slide", "training")
BLOCK = 16_384  # spots looked at together
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
    mean, std = _moments(features)
    f = len(mean)
    transform = FeatureTransform(
        np.float32(standardize == "slide"),
        mean.astype(np.float32),
        std.astype(np.float32),
        np.zeros((f, 0), np.float32),
    )
    standardized = np.concatenate([standardized_features(transform, x) for x in features])
    p = min(num_components, f, len(standardized) - 1)
    many = len(standardized) > 10 * f  # spots: the eigenvectors of the covariance are cheaper
    solver = "covariance_eigh" if many else "full" if f <= 2048 else "randomized"
    pca = PCA(p, svd_solver=solver, random_state=0)
    return transform._replace(components=pca.fit(standardized).components_.T.astype(np.float32))


def standardized_features(transform: FeatureTransform, features: np.ndarray) -> np.ndarray:
    """[n, f] float32 with zero mean and unit variance, clipped at CLIP.

    Raises:
      ValueError: a width that was not fitted; `eval.model_store` checks slides, and names them.
    """
    standardize = _standardizer(transform, features)
    return np.concatenate([standardize(block) for block in _blocks(features)])


def own_features(transform: FeatureTransform, features: np.ndarray) -> np.ndarray:
    """Principal components [n, p] of a spot's own standardised features.

    Blockwise: features [n, f] may be an HDF5 dataset that is larger than memory.
    """
    standardize = _standardizer(transform, features)
    return np.concatenate([standardize(b) @ transform.components for b in _blocks(features)])


def _standardizer(transform: FeatureTransform, features: np.ndarray):
    if features.shape[1] != len(transform.mean):
        raise ValueError(
            f"expected features of width {len(transform.mean)} as fitted, found "
            f"{features.shape[1]}."
        )
    mean, std = _moments([features]) if transform.per_slide else (transform.mean, transform.std)
    return lambda x: np.clip((x - mean) / std, -CLIP, CLIP).astype(np.float32)


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


def _blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    return (features[i : i + BLOCK] for i in range(0, len(features), BLOCK))


def _moments(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [f] over the rows of all arrays, block by block in float64."""
    n, mean, squares = 0, 0.0, 0.0
    for x in (block.astype(np.float64) for array in features for block in _blocks(array)):
        shift = x.mean(axis=0) - mean
        squares = squares + ((x - x.mean(axis=0)) ** 2).sum(axis=0)
        squares = squares + shift**2 * n * len(x) / (n + len(x))
        mean = mean + shift * len(x) / (n + len(x))
        n += len(x)
    std = np.sqrt(squares / n)
    return mean, np.where(std > 1e-8, std, 1.0)
