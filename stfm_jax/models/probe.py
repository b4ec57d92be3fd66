"""HEST's linear probe: the row by which HEST-bench compares encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.expression import NORMALIZATIONS, expression
from stfm_jax.models.method import Genes, Method, Prediction, Request, Run, Section
from stfm_jax.regression.features import moments, principal_axes
from stfm_jax.regression.regressors import ridge_without_intercept
from stfm_jax.settings import Settings, setting

COMPONENTS = 256
PENALTY = 100.0  # over features x genes


@dataclasses.dataclass(frozen=True)
class ProbeSettings(Settings):
    """Only what the probe is fitted to; the rest is HEST's."""

    SECTION: ClassVar[str] = "data"

    normalization: str = setting("log1p", one_of=NORMALIZATIONS)


class State(NamedTuple):
    """A probe fitted to training slides: (x - mean) / std @ weights."""

    mean: np.ndarray  # [f] of the features
    std: np.ndarray  # [f]
    weights: np.ndarray  # [f, g]
    alpha: float


class Probe(Method):
    """StandardScaler, PCA and ridge with a fixed penalty, as HEST-bench has them by default.

    Features are scaled by the training spots' moments and reduced to 256 principal axes. Ridge has
    no intercept, and its penalty is 100 / (axes x genes): .0078 of 256 and 50, next to nothing.
    HEST stops its solver (lsqr) at a tolerance of 1e-4; here the solution is exact. Features of
    several encoders lie side by side, as one [ours].

    Without an intercept and with centred features predictions lie about 0 where expression does
    not: Pearson does not see it, but the squared error and what is made of it (`mse`, `mae`,
    `crps`) are of no use in this row.
    """

    name = "probe"
    papers = ("HEST, arXiv 2406.16192",)
    Settings = ProbeSettings
    State = State

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        mean, std = moments([slide.features for slide in slides])
        scaled = np.concatenate([_scaled(slide.features, mean, std) for slide in slides])
        axes = principal_axes(scaled, COMPONENTS, run.seed)
        y = [expression(slide, genes.scored, self.settings.normalization) for slide in slides]
        alpha = PENALTY / (axes.shape[1] * len(genes.scored))
        weights = axes @ ridge_without_intercept(scaled @ axes, np.concatenate(y), alpha)
        return State(*(a.astype(np.float32) for a in (mean, std, weights)), alpha)

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        blocks = feature_store.blocks(case.slide.features)
        return Prediction(
            (at, _scaled(x, state.mean, state.std) @ state.weights) for at, x in blocks
        )

    def hyperparameters(self, state: State) -> dict[str, Any]:
        return {"alpha": state.alpha}


def _scaled(features: feature_store.Features, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Features [n, f] in standard deviations about the mean; not clipped, as elsewhere here."""
    return ((np.asarray(features) - mean) / std).astype(np.float32)
