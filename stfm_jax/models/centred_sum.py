"""kernel_ridge + w (neighbour_copy - its mean over the section).

w is chosen by leaving out whole training sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stfm_jax.models import regression
from stfm_jax.models.method import (
    Genes,
    Prediction,
    Request,
    Run,
    Section,
    gathered,
    whole,
    within,
)
from stfm_jax.models.neighbour_copy import NeighbourCopy, neighbour_copy, own_features
from stfm_jax.ops.metrics import mean_over_genes, pearson
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

WEIGHTS = np.arange(0.0, 1.51, 0.1)


class State(NamedTuple):
    """Kernel ridge, and the weight of the copy."""

    transform: feature_ops.FeatureTransform
    regressor: regressors.Regressor
    weight: float


class CentredSum(NeighbourCopy):
    """The best regression on features, and what the neighbours add to it."""

    name = "centred_sum"
    State = State

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides, reach = [case.slide for case in cases], self.settings.reach
        settings = self.settings.seen
        seen = regression.seen_of(settings, slides, genes.scored, True, run.seed, run.once)
        fit = regression.fitted("kernel", slides, seen, run.once)
        unseen = regression.unseen("kernel", slides, seen, fit, run.once)
        unseen = np.split(unseen, np.cumsum([len(y) for y in seen.y])[:-1])
        own, scores = own_features(seen.transform, slides), np.zeros(len(WEIGHTS))
        for slide, base, y in zip(slides, unseen, seen.y, strict=True):
            copied = neighbour_copy(slide, slides, seen.y, own, reach)
            if copied is not None:
                centred = copied - copied.mean(axis=0)
                scores += [mean_over_genes(pearson(base + w * centred, y))[0] for w in WEIGHTS]
        return State(seen.transform, fit.regressor, float(WEIGHTS[np.argmax(scores)]))

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        n = case.slide.num_spots
        copied = gathered(super().predict(state, case, request).mean, n)
        x = regression.features_of(self.settings.seen, state.transform, case.slide, True)
        predicted = regressors.predict(state.regressor, x)
        return Prediction(whole(predicted + state.weight * (copied - copied.mean(axis=0))))

    def individual_data(self, state: State) -> dict[str, str]:
        return within("regressor", regressors.individual_data(state.regressor))

    def hyperparameters(self, state: State) -> dict[str, float]:
        return {"weight": state.weight}
