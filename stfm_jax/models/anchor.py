"""The regression that STFlow stands on, alone; and the plain way to draws with structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stfm_jax.models import regression
from stfm_jax.models.method import Blocks, Method, Prediction, Request, Section, whole
from stfm_jax.models.stflow.method import State, individual_data
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.regression import regressors


class Anchor(Method):
    """The state of `stflow`, predicted without the flow.

    A draw is the anchor plus residual vectors of training spots, drawn with replacement; they are
    out of fold, so that they are as large as on unseen slides.
    """

    name = "anchor"
    state_of = "stflow"
    draws_as = "anchor_residual"
    Settings = STFlowSettings
    State = State

    def narrowed(self, state: State, kept: Sequence[int]) -> State:
        fitted = state.fitted
        transform, anchor = regression.narrowed(fitted.transform, fitted.anchor, kept)
        return state._replace(fitted=fitted._replace(transform=transform, anchor=anchor))

    def needed(self, state: State) -> State:
        return state._replace(params={}, epochs=0)

    def individual_data(self, state: State) -> dict[str, str]:
        return individual_data(state)

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        fitted, residuals = state.fitted, state.residuals
        x = regression.features_of(self.settings, fitted.transform, case.slide, True)
        anchor = regressors.predict(fitted.anchor, x)

        def draws() -> Iterator[Blocks]:
            rng = np.random.default_rng(request.seed)
            for _ in range(request.draws):
                picked = rng.integers(len(residuals), size=len(anchor))
                yield whole(np.maximum(anchor + residuals[picked], 0.0))

        return Prediction(whole(np.maximum(anchor, 0.0)), draws())
