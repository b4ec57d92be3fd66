"""Expression in units of each slide's own mean and spread, and its principal axes.

Slides differ in depth, and patients in which genes vary most; a fit to targets in units of their
slide is not ruled by the slide that varies most. Predictions come back in the pooled training
slides' units. Few axes of the targets carry over to other slides; the rest is noise there. [ours]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.covariance import LedoitWolf

from stfm_jax.regression.regressors import Linear, Regressor, each

_LEAST = 1e-6  # standard deviation of a gene that varies


class Scale(NamedTuple):
    """What takes scaled targets back to expression."""

    mean: np.ndarray  # [g] over all training spots
    std: np.ndarray  # [g] within training slides


def per_slide(y: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Scale]:
    """Expression of each slide [n_i, g] with mean 0 and standard deviation 1 by gene, and the way
    back; a gene that is constant in a slide is 0 there."""
    centred = within_slides(y)
    scaled = [part / np.maximum(part.std(axis=0), _LEAST) for part in centred]
    return scaled, Scale(np.concatenate(y).mean(axis=0), np.concatenate(centred).std(axis=0))


def within_slides(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Values of each slide [n_i, g] about their mean there."""
    return [part - part.mean(axis=0) for part in values]


def back(scaled: np.ndarray, scale: Scale) -> np.ndarray:
    """Expression [n, g] of scaled predictions."""
    return scaled * scale.std + scale.mean


def regressor_back(regressor: Regressor, scale: Scale) -> Regressor:
    """The regressor of expression for one of scaled targets."""
    return each(
        regressor,
        lambda part: part._replace(
            weights=(part.weights * scale.std).astype(np.float32),
            bias=back(part.bias, scale).astype(np.float32),
        ),
    )


def principal_axes(scaled: np.ndarray, number: int) -> np.ndarray:
    """The first principal axes [g, number] of scaled targets [n, g], orthonormal."""
    values, vectors = np.linalg.eigh(scaled.T.astype(np.float64) @ scaled)
    return vectors[:, np.argsort(-values)[:number]]


def leading_axes(fitted: np.ndarray, explained: float) -> np.ndarray:
    """The principal axes [g, k] of what a fit says of its training spots [n, g], as few as make up
    a share of its variance."""
    axes = principal_axes(fitted, fitted.shape[1])
    variance = np.square(fitted @ axes).sum(axis=0)
    number = np.searchsorted(np.cumsum(variance) / max(variance.sum(), 1e-12), explained) + 1
    return axes[:, :number]


def reduced(regressor: Regressor, axes: np.ndarray) -> Regressor:
    """The regressor whose predictions are those of linear ones, projected onto axes [g, k]."""
    onto = axes @ axes.T
    return each(
        regressor,
        lambda part: Linear(
            (part.weights @ onto).astype(np.float32), (part.bias @ onto).astype(np.float32)
        ),
    )


def residual_covariance(residuals: np.ndarray) -> np.ndarray:
    """Shrunk covariance [g, g] of residuals [n, g] about zero (Ledoit and Wolf 2004)."""
    return LedoitWolf(assume_centered=True).fit(residuals.astype(np.float64)).covariance_
