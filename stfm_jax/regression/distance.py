"""How far a slide is from those that a regression was fitted to, in units of left-out ones.

A slide is far in two ways: its spots lie where training spots do not, and its features vary
together otherwise. The first is the leverage x (X'X + a I)^-1 x' of a spot, how far a ridge
regression extrapolates there (Hoaglin and Welsch 1978), its median over the spots; the second is
how unlike 1 the variances are along the principal axes of training, the root mean square of their
logarithms over all directions. A slide's number is the mean of the logarithms of both, set against
the numbers of training units (sections; blocks, where there is one section), each left out of X in
turn, with the rest of its patient where there are several. No stranger is needed to say what is
usual: it is a quantile of what a further unit would have, if the number is normal [ours].

All that is of features that a regression sees, which are standardised in each slide. That a slide
*looks* otherwise, by stain, scanner or organ, is in the means of its features as they come, and is
set against left-out units in the same way; it may matter or not, so it is told and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.stats
from sklearn.cluster import KMeans

from stfm_jax.runtime import cores

NEAR, FAR = 0.80, 0.95  # quantiles: up to the first a slide is as training units are; past the
# second it is a stranger
PENALTY = 1e3  # of the leverage
LEAST = 0.5  # of left-out units' leverage: less does not bring a slide nearer; a blank one has none
AXES = 16  # whose variances are compared
SPOTS = 4096  # of a slide, evenly spaced, are looked at
_LEAST = 2 * AXES  # spots of a piece


class Ruler(NamedTuple):
    """What measures spots against training spots."""

    center: np.ndarray  # [f]
    root: np.ndarray  # [f, r] the leverage of x is |(x - center) root|^2
    axes: np.ndarray  # [own, AXES] training spots have unit variance along each


class Look(NamedTuple):
    """How far the means of training units' features lie from those of the others."""

    log_mean: np.ndarray  # []
    log_std: np.ndarray  # []
    units: np.ndarray  # []


class Reference(NamedTuple):
    """What is usual, fitted to training spots."""

    ruler: Ruler
    leverage: np.ndarray  # [] geometric mean over left-out units
    sizes: np.ndarray  # [k] spots of the pieces that a slide is cut into, falling
    log_mean: np.ndarray  # [k] of the units' numbers
    log_std: np.ndarray  # [k]
    units: np.ndarray  # [] how many


def fit(
    x: np.ndarray, own: int, coords: np.ndarray, units: np.ndarray, groups: np.ndarray, blocks: bool
) -> Reference:
    """The reference of training spots.

    Args:
      x: [n, f] features.
      own: how many of them are the spot's own, the first; neighbourhoods' means vary too little.
      coords: [n, 2] places within their slides.
      units: [n] section or block of each spot; two or more.
      groups: [n] what is left out with it.
      blocks: whether units are blocks of one section. They lie beside what is left, and a stranger
        must not seem near because it is measured against more than they were: it is measured
        against all but the block in the middle of their numbers.
    """
    at = [np.flatnonzero(units == unit) for unit in np.unique(units)]
    sizes = _sizes(int(np.median([len(spots) for spots in at])))
    kinds = np.unique(groups)
    found = cores.each(_ruler, ((x[groups != group], own) for group in kinds), rows=len(x))
    rulers = dict(zip(kinds, found, strict=True))
    left_out = [(rulers[groups[spots[0]]], x[spots], coords[spots]) for spots in at]
    medians = [np.median(_leverage(ruler, part)) for ruler, part, _ in left_out]
    leverage = np.exp(np.mean(np.log(medians)))
    numbers = np.array([[number(*each, size, leverage) for size in sizes] for each in left_out])
    middle = np.argsort(numbers[:, 0])[len(at) // 2]
    return Reference(
        left_out[middle][0] if blocks else _ruler(x, own),
        np.float32(leverage),
        np.array(sizes, np.int32),
        numbers.mean(axis=0).astype(np.float32),
        numbers.std(axis=0, ddof=1).astype(np.float32),
        np.int32(len(at)),
    )


def number(ruler: Ruler, x: np.ndarray, coords: np.ndarray, size: int, leverage: float) -> float:
    """The logarithm that slides are compared by.

    Args:
      ruler: fitted.
      x: [n, f] features of a slide's spots.
      coords: [n, 2].
      size: spots of the pieces that the slide is cut into; moments of fewer spots are noisier.
      leverage: of left-out units.
    """
    own = len(ruler.axes)
    along = (x - ruler.center)[:, :own] @ ruler.axes
    unlike = [_unlike(along[piece]) for piece in _pieces(coords, size)]
    median = max(np.median(_leverage(ruler, x)), LEAST * leverage)
    return float((np.log(median) + np.mean(np.log(unlike))) / 2)


def ratio(reference: Reference, x: np.ndarray, coords: np.ndarray) -> float:
    """How far a slide is, over the geometric mean of left-out units; arguments as in `number`."""
    k = _rung(reference, len(x))
    found = number(reference.ruler, x, coords, int(reference.sizes[k]), reference.leverage)
    return float(np.exp(found - reference.log_mean[k]))


def of_spots(reference: Reference, x: np.ndarray) -> np.ndarray:
    """Leverage of single spots [n], over what the median spot of a left-out unit has."""
    return (_leverage(reference.ruler, x) / reference.leverage).astype(np.float32)


def usual(reference: Reference, quantile: float, num_spots: int) -> float:
    """The ratio that a further unit of so many spots would stay below with a probability."""
    deviations = _deviations(float(reference.units), quantile)
    return float(np.exp(deviations * reference.log_std[_rung(reference, num_spots)]))


def nearness(reference: Reference, found: float, num_spots: int) -> float:
    """1 of a ratio up to NEAR's, 0 from FAR's on, and between them linear in its logarithm."""
    near, far = (np.log(usual(reference, quantile, num_spots)) for quantile in (NEAR, FAR))
    return float(np.interp(np.log(found), [near, far], [1.0, 0.0]))


def sampled(num_spots: int) -> np.ndarray:
    """The spots of a slide that are looked at."""
    return np.unique(np.linspace(0, num_spots - 1, min(num_spots, SPOTS)).astype(int))


def fit_look(means: np.ndarray, sizes: np.ndarray, groups: np.ndarray, std: np.ndarray) -> Look:
    """What is usual of the means of features, each unit's group left out.

    Two groups lie as far from one another either way, so nothing is known of the spread, and no
    slide is then too far.

    Args:
      means: [u, f] of each unit.
      sizes: [u] spots of each.
      groups: [u] what is left out with it.
      std: [f] of all training spots.
    """
    numbers = []
    for mean, group in zip(means, groups, strict=True):
        rest = groups != group
        numbers.append(np.log(_shift(mean, np.average(means[rest], 0, sizes[rest]), std)))
    spread = np.std(numbers, ddof=1) if len(np.unique(groups)) > 2 else np.inf
    return Look(*(np.float32(value) for value in (np.mean(numbers), spread, len(numbers))))


def look_ratio(look: Look, mean: np.ndarray, center: np.ndarray, std: np.ndarray) -> float:
    """How far the mean [f] of a slide's features lies from training's, over left-out units."""
    return float(np.exp(np.log(_shift(mean, center, std)) - look.log_mean))


def look_usual(look: Look, quantile: float) -> float:
    """The ratio that a further unit would stay below with a probability."""
    return float(np.exp(_deviations(float(look.units), quantile) * look.log_std))


def _shift(mean: np.ndarray, center: np.ndarray, std: np.ndarray) -> float:
    """Root mean square over the features, in standard deviations of training spots."""
    return float(np.sqrt(np.mean(((mean - center) / std) ** 2)) + 1e-6)


def _deviations(units: float, quantile: float) -> float:
    """Of a further unit, in standard deviations of those there are."""
    return scipy.stats.t.ppf(quantile, units - 1) * np.sqrt(1 + 1 / units)


def _sizes(largest: int) -> Sequence[int]:
    """Of pieces: a unit's, its half, and so on."""
    sizes = [largest]
    while sizes[-1] // 2 >= _LEAST:
        sizes.append(sizes[-1] // 2)
    return sizes


def _rung(reference: Reference, num_spots: int) -> int:
    """The largest of the sizes that a slide has; the least, if it has none."""
    fits = np.flatnonzero(reference.sizes <= num_spots)
    return int(fits[0]) if len(fits) else len(reference.sizes) - 1


def _pieces(coords: np.ndarray, size: int) -> list[np.ndarray]:
    """Spots of a slide in compact pieces of about a size."""
    number = max(1, round(len(coords) / size))
    if number == 1:
        return [np.arange(len(coords))]
    labels = KMeans(number, random_state=0, n_init=1).fit_predict(coords)
    return [piece for i in range(number) if len(piece := np.flatnonzero(labels == i)) > 1]


def _ruler(x: np.ndarray, own: int) -> Ruler:
    center = x.mean(axis=0, dtype=np.float64)
    centred = x - center
    products = centred.T @ centred
    values, vectors = scipy.linalg.eigh(products)
    root = vectors / np.sqrt(np.maximum(values, 0.0) + PENALTY)
    values, vectors = scipy.linalg.eigh(products[:own, :own] / len(x))
    axes = vectors[:, -AXES:] / np.sqrt(np.maximum(values[-AXES:], 1e-12))
    return Ruler(*(array.astype(np.float32) for array in (center, root, axes)))


def _leverage(ruler: Ruler, x: np.ndarray) -> np.ndarray:
    return np.square((x - ruler.center) @ ruler.root).sum(axis=1)


def _unlike(along: np.ndarray) -> float:
    """Root mean square of the logarithms of variances that are 1 in training [n, k].

    The covariance is drawn towards training's by one spot, so that none is 0.
    """
    n, k = along.shape
    covariance = (n * np.cov(along.T) + np.eye(k)) / (n + 1)
    return float(np.sqrt(np.mean(np.log(np.linalg.eigvalsh(covariance)) ** 2)) + 1e-6)
