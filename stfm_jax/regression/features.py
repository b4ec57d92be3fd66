"""What regressors (and small networks) see of a slide: standardised, reduced, neighbourhood-wide.

Standardising per slide uses the slide's own images (no expression); it takes out staining.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag
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
    widths: np.ndarray | None = None  # [e] features of each encoder, where there are several
    axes: np.ndarray | None = (
        None  # [e] principal axes of each, which are 0 at the others' features
    )


def fit_transform(
    features: Sequence[np.ndarray],
    standardize: str,
    num_components: int,
    seed: int = 0,
    widths: Sequence[int] = (),
) -> FeatureTransform:
    """Fits scaling and principal axes on the features of the training slides.

    Args:
      features: per slide [n_i, f].
      standardize: "slide" (each by itself) or "training" (all by the training moments).
      num_components: axes kept, at most f and the number of spots; of each encoder, of several.
      seed: of the axes, where features are so wide that they are found by random projections.
      widths: how many of the f each encoder has, where there are several.
    """
    if standardize not in STANDARDIZATIONS:
        raise InputError(
            f"config.data.standardize must be one of {', '.join(STANDARDIZATIONS)}, found "
            f"{standardize!r}."
        )
    mean, std = moments(features)
    f = len(mean)
    transform = FeatureTransform(
        np.float32(standardize == "slide"),
        mean.astype(np.float32),
        std.astype(np.float32),
        np.zeros((f, 0), np.float32),
    )
    standardized = np.concatenate([standardized_features(transform, x) for x in features])
    if not len(widths):
        return transform._replace(components=principal_axes(standardized, num_components, seed))
    parts = [principal_axes(x, num_components, seed) for x in _split(standardized, widths)]
    return transform._replace(
        components=block_diag(*parts),
        widths=np.array(widths, np.int32),
        axes=np.array([part.shape[1] for part in parts], np.int32),
    )


def principal_axes(standardized: np.ndarray, num_components: int, seed: int) -> np.ndarray:
    """Principal axes [f, p] of standardised features [n, f]; see `fit_transform`."""
    n, f = standardized.shape
    p = min(num_components, f, n - 1)
    many = n > 10 * f  # spots: the eigenvectors of the covariance are cheaper
    solver = "covariance_eigh" if many else "full" if f <= 2048 else "randomized"
    pca = PCA(p, svd_solver=solver, random_state=seed)
    return pca.fit(standardized).components_.T.astype(np.float32)


def _split(values: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """Columns of `values` in parts of these widths."""
    return np.split(values, np.cumsum(widths)[:-1], axis=-1)


def columns_of(transform: FeatureTransform, num_features: int) -> list[np.ndarray]:
    """Which of the features that are seen [n, num_features] each encoder has; [] of one encoder.

    Seen are its principal components, or these and their means over neighbourhoods, in which every
    encoder's lie side by side.
    """
    if transform.axes is None:
        return []
    scales = num_features // transform.components.shape[1]
    own = np.arange(num_features).reshape(scales, -1)
    return [part.ravel() for part in _split(own, transform.axes)]


def narrowed(transform: FeatureTransform, kept: Sequence[int]) -> FeatureTransform:
    """For slides with the features of some encoders only, `kept` of those it was fitted to."""
    rows, axes = (
        np.concatenate([_split(np.arange(sizes.sum()), sizes)[i] for i in kept])
        for sizes in (transform.widths, transform.axes)
    )
    return FeatureTransform(
        transform.per_slide,
        transform.mean[rows],
        transform.std[rows],
        transform.components[np.ix_(rows, axes)],
        transform.widths[list(kept)],
        transform.axes[list(kept)],
    )


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
    mean, std = moments([features]) if transform.per_slide else (transform.mean, transform.std)
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


def moments(features: Sequence[feature_store.Features]) -> tuple[np.ndarray, np.ndarray]:
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
