"""Ridge regression, its prediction averaged over each spot and its nearest."""

from __future__ import annotations

from stfm_jax.models.method import Prediction, Request, Section, gathered, whole
from stfm_jax.models.regression import State
from stfm_jax.models.ridge import Ridge
from stfm_jax.regression.features import window_mean

SMOOTHING = 9  # the spot and its 8 nearest, ties kept


class RidgeSmooth(Ridge):
    """The state of `ridge`, predicted with smoothing."""

    name = "ridge_smooth"
    state_of = "ridge"

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        slide = case.slide
        rough = gathered(super().predict(state, case, request).mean, slide.num_spots)
        return Prediction(whole(window_mean(rough, slide.coords_um, SMOOTHING)))

    def hyperparameters(self, state: State) -> dict[str, float]:
        return {}
