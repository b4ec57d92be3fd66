"""How far a slide is from those that a regression was fitted to, in units of left-out ones.

The leverage of a spot, x (X'X + n I)^-1 x' of n training spots X, is how far a ridge regression
extrapolates there (Hoaglin and Welsch 1978); the penalty is as much as a further feature of unit
variance adds. A slide's number is the median over its spots, set against the numbers of training
units (sections; blocks, where there is one section), each left out of X in turn. No stranger is
needed to say what is usual: it is a quantile of what a further unit would have, if the logarithm is
normal [ours].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.stats

NEAR, FAR = 0.95, 0.99  # quantiles: up to the first a slide is as training units are; past the
# second it is a stranger
SPOTS = 4096  # of a slide, evenly spaced, are looked at


class Reference(NamedTuple):
    """What is usual, fitted to training spots."""

    center: np.ndarray  # [f]
    root: np.ndarray  # [f, r] the leverage of x is |(x - center) root|^2
    log_mean: np.ndarray  # [] of the units' medians
    log_std: np.ndarray  # []
    units: np.ndarray  # []


def fit(x: np.ndarray, groups: np.ndarray) -> Reference:
    """The reference of training spots.

    Args:
      x: [n, f] features.
      groups: [n] unit of each spot; two or more.
    """
    medians = []
    for group in np.unique(groups):
        out = groups == group
        medians.append(np.median(_leverage(*_root(x[~out]), x[out])))
    logs = np.log(medians)
    spread = logs.std(ddof=1)
    return Reference(*_root(x), *map(np.float32, (logs.mean(), spread, len(logs))))


def ratio(reference: Reference, x: np.ndarray) -> float:
    """The number of a slide with features [n, f], over the geometric mean of the units' numbers."""
    median = np.median(_leverage(reference.center, reference.root, x))
    return float(np.exp(np.log(median) - reference.log_mean))


def of_spots(reference: Reference, x: np.ndarray) -> np.ndarray:
    """The same of single spots [n]."""
    leverage = _leverage(reference.center, reference.root, x)
    return (leverage / np.exp(reference.log_mean)).astype(np.float32)


def usual(reference: Reference, quantile: float) -> float:
    """The ratio that a further unit would stay below with a probability."""
    units = float(reference.units)
    deviations = scipy.stats.t.ppf(quantile, units - 1) * np.sqrt(1 + 1 / units)
    return float(np.exp(deviations * reference.log_std))


def nearness(reference: Reference, found: float) -> float:
    """1 of a ratio up to NEAR's, 0 from FAR's on, and between them linear in its logarithm."""
    near, far = (np.log(usual(reference, quantile)) for quantile in (NEAR, FAR))
    return float(np.interp(np.log(found), [near, far], [1.0, 0.0]))


def _root(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and root of (X'X + n I)^-1."""
    center = x.mean(axis=0, dtype=np.float64)
    centred = x - center
    values, vectors = scipy.linalg.eigh(centred.T @ centred)
    root = vectors / np.sqrt(np.maximum(values, 0.0) + len(x))
    return center.astype(np.float32), root.astype(np.float32)


def _leverage(center: np.ndarray, root: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.square((x - center) @ root).sum(axis=1)
