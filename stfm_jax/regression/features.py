"""What regressors (and small networks) see of a slide: standardised, reduced, neighbourhood-wide.

Standardising per slide uses the slide's own images (no expression); it takes out staining.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

from stfm_jax.data import feature_store
from stfm_jax.errors import InputError
from stfm_jax.ops.neighbors import nearest, neighbor_mean, spot_tree

STANDARDIZATIONS = ("slide", "training")
CLIP = 6.0  # standard deviations; one odd patch must not rule its neighbourhood [ours]


class FeatureTransform(NamedTuple):
    """Fitted on training slides; arrays only."""

    per_slide: np.ndarray  # [] 1.0 to standardise each slide by itself, 0.0 by mean and std below
    mean: np.ndarray  # [f]
    std: np.ndarray  # [f]
    components: np.ndarray  # [f, p] principal axes of the standardised features


def fit_transform(
    features: Sequence[np.ndarray], standardize: str, num_components: int, seed: int = 0
) -> FeatureTransform:
    """Fits scaling and principal axes on the features of the training slides.

    Args:
      features: per slide [n_i, f].
      standardize: "slide" (each by itself) or "training" (all by the training moments).
      num_components: axes kept, at most f and the number of spots.
      seed: of the axes, where features are so wide that they are found by random projections.
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
    pca = PCA(p, svd_solver=solver, random_state=seed)
    return transform._replace(components=pca.fit(standardized).components_.T.astype(np.float32))


def standardized_features(
    transform: FeatureTransform, features: feature_store.Features
) -> np.ndarray:
    """[n, f] float32 with zero mean and unit variance, clipped at CLIP.

    Raises:
      ValueError: a width that was not fitted; `stfm_jax.store` checks slides, and names them.
    """
    out = np.empty(features.shape, np.float32)
    for spots, values in standardized_blocks(transform, features):
        out[spots] = values
    return out


def own_features(transform: FeatureTransform, features: feature_store.Features) -> np.ndarray:
    """Principal components [n, p] of a spot's own standardised features."""
    out = np.empty((len(features), transform.components.shape[1]), np.float32)
    for spots, values in standardized_blocks(transform, features):
        out[spots] = values @ transform.components
    return out


def standardized_blocks(
    transform: FeatureTransform, features: feature_store.Features
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some spots [m] and their standardised features [m, f]; see `feature_store.blocks`."""
    if features.shape[1] != len(transform.mean):
        raise ValueError(
            f"expected features of width {len(transform.mean)} as fitted, found "
            f"{features.shape[1]}."
        )
    mean, std = _moments([features]) if transform.per_slide else (transform.mean, transform.std)
    for spots, x in feature_store.blocks(features):
        yield spots, np.clip((x - mean) / std, -CLIP, CLIP).astype(np.float32)


def context_features(
    transform: FeatureTransform,
    features: feature_store.Features,
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
    context = context_reader(transform, features, coords, scales)
    out = np.empty((len(features), transform.components.shape[1] * (1 + len(scales))), np.float32)
    for spots in feature_store.spans(len(features)):
        out[spots] = context(spots)
    return out


def context_reader(
    transform: FeatureTransform,
    features: feature_store.Features,
    coords: np.ndarray,
    scales: Sequence[int],
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that makes the `context_features` of some spots [m]; it holds [n, p] alone."""
    own = own_features(transform, features)
    tree = spot_tree(coords, 0)

    def context(spots: np.ndarray) -> np.ndarray:
        return np.concatenate([_window(own, tree, spots, size) for size in (1, *scales)], axis=1)

    return context


def window_mean(values: np.ndarray, coords: np.ndarray, size: int) -> np.ndarray:
    """Mean [n, g] of the spot and its `size - 1` nearest others, ties kept."""
    tree, out = spot_tree(coords, 0), np.empty_like(values)
    for spots in feature_store.spans(len(values)):
        out[spots] = _window(values, tree, spots, size)
    return out


def _window(values: np.ndarray, tree: cKDTree, spots: np.ndarray, size: int) -> np.ndarray:
    """Means [m, g] over the windows of some spots [m]; a window of one is the spot."""
    k = min(size, len(values)) - 1
    if k == 0:
        return values[spots]
    return neighbor_mean(values, nearest(tree, spots, k, include_self=True), len(spots))


def _moments(features: Sequence[feature_store.Features]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [f] over the rows of all arrays, block by block in float64."""
    n, mean, squares = 0, 0.0, 0.0
    for x in (x.astype(np.float64) for each in features for _, x in feature_store.blocks(each)):
        block_mean = x.mean(axis=0)
        x -= block_mean
        shift = block_mean - mean
        squares = squares + np.einsum("nf,nf->f", x, x)
        squares = squares + shift**2 * n * len(x) / (n + len(x))
        mean = mean + shift * len(x) / (n + len(x))
        n += len(x)
    std = np.sqrt(squares / n)
    return mean, np.where(std > 1e-8, std, 1.0)
