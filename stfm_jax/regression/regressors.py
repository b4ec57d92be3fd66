"""Closed-form regressors of expression on features: ridge, and kernel ridge by landmarks.

Both are baselines and anchors. A fitted regressor is a tuple of arrays; hyperparameters are chosen
by leaving out whole groups (slides, or spatial blocks of one slide), which also gives the
out-of-fold predictions an anchored model is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans

from stfm_jax.ops.metrics import mean_over_genes, pearson
from stfm_jax.runtime import cores

ALPHAS = tuple(10.0 ** np.arange(0.0, 4.6, 0.5))  # ridge, on features of unit variance
KERNEL_ALPHAS = tuple(10.0 ** np.arange(-1.5, 1.6, 0.5))
GAMMAS = (0.1, 0.2, 0.4, 0.8, 1.6)  # in units of 1 / median squared distance
MAX_LANDMARKS = 2048
BLOCK = 8192  # spots predicted together


class Linear(NamedTuple):
    """`x @ weights + bias`."""

    weights: np.ndarray  # [f, g]
    bias: np.ndarray  # [g]


class Kernel(NamedTuple):
    """`exp(-gamma |x - landmark|^2) @ weights + bias`.

    With every training spot a landmark this is exact kernel ridge regression; with fewer it is the
    Nystroem approximation, linear in the number of spots.
    """

    landmarks: np.ndarray  # [m, f]
    gamma: np.ndarray  # []
    weights: np.ndarray  # [m, g]
    bias: np.ndarray  # [g]


class Mean(NamedTuple):
    """The mean of several regressors, each on columns of its own [ours]: one for each encoder."""

    of: dict[str, Linear | Kernel]  # by number, from "0"
    columns: dict[str, np.ndarray]  # of the features, by the same


Regressor = Linear | Kernel | Mean


class Choice(NamedTuple):
    """Hyperparameters and how they did on the left-out groups."""

    alpha: float
    gamma: float  # absolute; nan for ridge
    score: float  # mean gene-wise Pearson over the left-out groups


class Choices(NamedTuple):
    """Hyperparameters of a `Mean`."""

    of: dict[str, Choice]
    columns: dict[str, np.ndarray]


def constant(mean: np.ndarray, num_features: int) -> Linear:
    """Predicts mean [g] everywhere."""
    return Linear(np.zeros((num_features, len(mean)), np.float32), np.asarray(mean, np.float32))


def predict(regressor: Regressor, x: np.ndarray) -> np.ndarray:
    """Expression [n, g] float32 of features [n, f]; linear time and blockwise memory."""
    if isinstance(regressor, Mean):
        parts = (predict(part, x[:, regressor.columns[i]]) for i, part in regressor.of.items())
        return sum(parts) / np.float32(len(regressor.of))
    out = np.empty((len(x), len(regressor.bias)), np.float32)
    for i in range(0, len(x), BLOCK):
        block = slice(i, i + BLOCK)
        out[block] = _design(regressor, x[block]) @ regressor.weights + regressor.bias
    return out


def _design(regressor: Regressor, x: np.ndarray) -> np.ndarray:
    """What the weights are applied to: x itself, or its kernel with the landmarks."""
    if isinstance(regressor, Linear):
        return x
    return _rbf(x, regressor.landmarks, float(regressor.gamma))


def individual_data(regressor: Regressor) -> dict[str, str]:
    """What a regressor holds of single training spots, by field; see `models.method.Method`."""
    if isinstance(regressor, Linear):
        return {}
    if isinstance(regressor, Mean):
        parts = regressor.of.items()
        return {f"of/{i}/{k}": v for i, part in parts for k, v in individual_data(part).items()}
    (m, f), g = regressor.landmarks.shape, len(regressor.bias)
    return {
        "landmarks": f"features of {m} single training spots, {f} numbers each",
        "weights": (
            f"{g} numbers for each of these spots; where every training spot is among them (up to "
            f"{MAX_LANDMARKS}), what was measured there can be computed from both"
        ),
    }


def num_genes(regressor: Regressor) -> int:
    """Genes that it predicts."""
    first = regressor.of["0"] if isinstance(regressor, Mean) else regressor
    return len(first.bias)


def narrowed(fitted: Mean | Choices, kept: Sequence[int], columns: Sequence[np.ndarray]):
    """Some of the regressors (or of their hyperparameters), on other columns.

    Args:
      fitted: of several encoders.
      kept: numbers of those that stay.
      columns: theirs.
    """
    of = {str(new): fitted.of[str(old)] for new, old in enumerate(kept)}
    return type(fitted)(of, {str(i): columns[i] for i in range(len(kept))})


def fit(
    kind: str, x: np.ndarray, y: np.ndarray, choice: Choice | Choices, seed: int = 0
) -> Regressor:
    """Fits "ridge" or "kernel" to features [n, f] and expression [n, g]; a `Mean` of several."""
    if isinstance(choice, Choices):
        at = choice.columns
        of = {i: fit(kind, x[:, at[i]], y, each, seed) for i, each in choice.of.items()}
        return Mean(of, dict(at))
    if kind == "ridge":
        return next(_ridge_path(x, y, [choice.alpha]))
    return next(_kernel_path(x, y, [choice.alpha], choice.gamma, seed))


def each(regressor: Regressor, change: Callable[[Any], Any]) -> Regressor:
    """The regressor changed; of a `Mean`, every part."""
    if isinstance(regressor, Mean):
        return Mean({i: change(part) for i, part in regressor.of.items()}, regressor.columns)
    return change(regressor)


def choose_each(
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    columns: Sequence[np.ndarray],
    seed: int = 0,
) -> Choice | Choices:
    """`choose` on the columns of each encoder; on all where `columns` is empty."""
    if not columns:
        return choose(kind, x, y, groups, seed)
    at = {str(i): part for i, part in enumerate(columns)}
    return Choices({i: choose(kind, x[:, part], y, groups, seed) for i, part in at.items()}, at)


def choose(kind: str, x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int = 0) -> Choice:
    """Hyperparameters of the best mean gene-wise Pearson over left-out groups.

    Args:
      kind: "ridge" or "kernel".
      x: [n, f] features.
      y: [n, g] expression.
      groups: [n] group of each spot.
      seed: draws the landmarks where there are more spots than MAX_LANDMARKS.
    """
    unit = 1.0 / _median_squared_distance(x, seed) if kind == "kernel" else np.nan
    gammas = [g * unit for g in GAMMAS] if kind == "kernel" else [np.nan]
    alphas = KERNEL_ALPHAS if kind == "kernel" else ALPHAS
    kinds = np.unique(groups)

    def left_out(group, gamma: float) -> list[float]:
        """Scores of every alpha on one group."""
        out = groups == group
        seen = x[~out], y[~out], alphas
        path = _kernel_path(*seen, gamma, seed) if kind == "kernel" else _ridge_path(*seen)
        design, found = None, []  # the same for every alpha
        for regressor in path:
            design = _design(regressor, x[out]) if design is None else design
            predicted = design @ regressor.weights + regressor.bias
            found.append(mean_over_genes(pearson(predicted, y[out]))[0])
        return found

    pieces = [(group, gamma) for gamma in gammas for group in kinds]
    found = cores.each(left_out, pieces, rows=len(x))
    scores = np.reshape(found, (len(gammas), len(kinds), len(alphas))).mean(axis=1)
    i, j = np.unravel_index(np.argmax(scores), scores.shape)
    return Choice(float(alphas[j]), float(gammas[i]), float(scores[i, j]))


def out_of_fold(
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    choice: Choice | Choices,
    seed: int = 0,
) -> np.ndarray:
    """Prediction [n, g] of each group by a regressor that never saw it."""

    def of_group(out: np.ndarray) -> np.ndarray:
        return predict(fit(kind, x[~out], y[~out], choice, seed), x[out])

    prediction, parts = np.zeros_like(y), [(groups == group,) for group in np.unique(groups)]
    for (out,), found in zip(parts, cores.each(of_group, parts, rows=len(x)), strict=True):
        prediction[out] = found
    return prediction


def leave_out_groups(
    sizes: Sequence[int],
    coords: Sequence[np.ndarray],
    seed: int = 0,
    patients: Sequence[str] = (),
    max_groups: int = 5,
) -> np.ndarray:
    """Groups to leave out: patients; slides of one patient; five spatial blocks of one slide.

    Args:
      sizes: spots of each slide.
      coords: [n_i, 2] of each slide.
      seed: of the blocks.
      patients: of each slide, or none.
      max_groups: more patients or slides than this share groups.
    """
    names = sorted(set(patients))
    if len(names) > 1:
        return np.repeat([names.index(patient) % max_groups for patient in patients], sizes)
    if len(sizes) == 1:
        blocks = KMeans(min(max_groups, sizes[0]), n_init=4, random_state=seed).fit(coords[0])
        return blocks.labels_
    return np.repeat(np.arange(len(sizes)) % max_groups, sizes)


def ridge_without_intercept(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """Weights [f, g] that minimise |x @ weights - y|^2 + alpha |weights|^2, nothing centred."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    products = x.T @ x
    products[np.diag_indices_from(products)] += alpha
    return scipy.linalg.solve(products, x.T @ y, assume_a="pos")


def _ridge_path(x: np.ndarray, y: np.ndarray, alphas: Sequence[float]) -> Iterator[Linear]:
    """Ridge for every alpha from one eigendecomposition, on the smaller side of x."""
    x_mean, y_mean = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    x, y = x.astype(np.float64) - x_mean, y.astype(np.float64) - y_mean
    primal = len(x) >= x.shape[1]
    values, vectors = scipy.linalg.eigh(x.T @ x if primal else x @ x.T)
    target = vectors.T @ (x.T @ y if primal else y)
    for alpha in alphas:
        dual = vectors @ (target / (np.maximum(values, 0.0) + alpha)[:, None])
        weights = dual if primal else x.T @ dual
        yield Linear(weights.astype(np.float32), (y_mean - x_mean @ weights).astype(np.float32))


def _kernel_path(
    x: np.ndarray, y: np.ndarray, alphas: Sequence[float], gamma: float, seed: int
) -> Iterator[Kernel]:
    """Kernel ridge for every alpha; exact while all spots are landmarks."""
    y_mean = y.mean(axis=0, dtype=np.float64)
    y = y.astype(np.float64) - y_mean
    exact = len(x) <= MAX_LANDMARKS
    landmarks = x if exact else x[_landmarks(len(x), seed)]
    values, vectors = scipy.linalg.eigh(_rbf(landmarks, landmarks, gamma))
    values = np.maximum(values, 1e-10 * values[-1])
    if exact:
        rotated = vectors.T @ y
        solutions = ((vectors @ (rotated / (values + a)[:, None]), y_mean) for a in alphas)
    else:
        to_features = vectors / np.sqrt(values)
        path = _ridge_path(_rbf(x, landmarks, gamma) @ to_features, y, alphas)
        solutions = ((to_features @ r.weights, y_mean + r.bias) for r in path)
    for weights, bias in solutions:
        yield Kernel(
            landmarks.astype(np.float32),
            np.float32(gamma),
            weights.astype(np.float32),
            bias.astype(np.float32),
        )


def _landmarks(n: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(n, MAX_LANDMARKS, replace=False))


def _rbf(a: np.ndarray, b: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma |a - b|^2) [n, m], from a product of matrices: scipy's cdist takes far longer."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    distance = a @ b.T
    distance *= -2.0
    distance += (a * a).sum(axis=1)[:, None]
    distance += (b * b).sum(axis=1)
    np.maximum(distance, 0.0, out=distance)
    distance *= -gamma
    return np.exp(distance, out=distance)


def _median_squared_distance(x: np.ndarray, seed: int) -> float:
    index = np.random.default_rng(seed).choice(len(x), min(len(x), 1000), replace=False)
    distance = pdist(x[index], "sqeuclidean")
    return float(np.median(distance[distance > 0]))
