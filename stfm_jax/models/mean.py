"""Each gene's mean over the training spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.expression import expression
from stfm_jax.models.method import Genes, Method, Prediction, Request, Run, Section
from stfm_jax.models.regression import RegressionSettings


class State(NamedTuple):
    """The training spots' mean."""

    mean: np.ndarray  # [g]


class Mean(Method):
    """What a method is worth that sees nothing."""

    name = "mean"
    needs = frozenset()
    Settings = RegressionSettings
    State = State

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        y = [expression(c.slide, genes.scored, self.settings.normalization) for c in cases]
        return State(np.concatenate(y).mean(axis=0))

    def narrowed(self, state: State, kept: Sequence[int]) -> State:
        return state

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        spans = feature_store.spans(case.slide.num_spots)
        return Prediction((at, np.tile(state.mean, (len(at), 1))) for at in spans)
