"""A regression that is flexible on slides like the training slides, and shrunk on strangers.

The flexible fit is the mean of a kernel, a ridge and trees, which does best on further sections of
the training patients; the other, and what says which is taken, are `models.strangers`. [ours]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stfm_jax.models import regression, strangers
from stfm_jax.models.forest import LEAF, extra_trees
from stfm_jax.models.method import Genes, Method, Prediction, Request, Run, Section, within
from stfm_jax.models.regression import Fit, RegressionSettings
from stfm_jax.models.strangers import Strangers
from stfm_jax.regression import regressors, targets
from stfm_jax.regression import trees as tree_ops
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.regression.regressors import Choice, Choices, Regressor

LINEAR = ("kernel", "ridge")  # in the flexible fit, beside the trees


class Near(NamedTuple):
    """Fits that are averaged where a slide is near."""

    kernel: Regressor
    ridge: Regressor
    trees: tree_ops.Trees


class State(NamedTuple):
    """Both fits, and what says which is taken."""

    transform: FeatureTransform
    near: Near
    strangers: Strangers
    kernel: Choice | Choices
    ridge: Choice | Choices


class Gated(Method):
    """The mean that carries over, in closed form."""

    name = "gated"
    Settings = RegressionSettings
    State = State
    compared_with = ("ridge_smooth", "kernel_ridge")

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        seen = regression.seen_of(self.settings, slides, genes.scored, True, run.seed, run.once)
        in_units, scale = regression.scaled(seen)
        fits: dict[str, Fit] = {
            kind: regression.fitted(kind, slides, in_units, run.once) for kind in LINEAR
        }
        near = [targets.regressor_back(fits[kind].regressor, scale) for kind in LINEAR]
        return State(
            seen.transform,
            Near(*near, extra_trees(seen, run.seed)),
            strangers.fit(slides, seen, LINEAR, run.once),
            *(fits[kind].choice for kind in LINEAR),
        )

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        slide, settings = case.slide, self.settings
        known = settings, state.transform, slide
        standing = strangers.standing(state.strangers, *known, case.familiar)
        share = standing.share
        near = ((at, near_mean(state.near, x)) for at, x in regression.feature_blocks(*known, True))
        if share == 1.0:
            return Prediction(near, standing=standing)
        away = [1.0 - each for each in standing.shares]
        far = strangers.far_mean(state.strangers, state.transform, slide, away)

        def blocks() -> Iterator[tuple]:
            for spots, part in near:
                yield spots, share * part + (1.0 - share) * far[spots]

        return Prediction(blocks(), standing=standing)

    def individual_data(self, state: State) -> dict[str, str]:
        return within(
            "near",
            {
                **within("kernel", regressors.individual_data(state.near.kernel)),
                **tree_ops.individual_data(state.near.trees, LEAF),
            },
        )

    def hyperparameters(self, state: State) -> dict[str, Any]:
        chosen = {kind: regression.told(getattr(state, kind)) for kind in LINEAR}
        return {**chosen, "share": float(state.strangers.share)}


def near_mean(near: Near, x: np.ndarray) -> np.ndarray:
    """Expression [n, g] by the flexible fit, of features [n, f]."""
    linear = regressors.predict(near.kernel, x) + regressors.predict(near.ridge, x)
    return (linear + tree_ops.predict(near.trees, x)) / 3
