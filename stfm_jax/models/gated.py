"""A regression that is flexible on slides like the training slides, and shrunk on strangers.

Of what the image says of expression, little carries over to a patient never seen before, and a
flexible fit spends itself on the rest. So there are two fits: one of a kernel, a ridge and trees,
which does best on further sections of the training patients; one of strongly shrunk ridges on few
axes of the targets, smoothed, which does best on strangers. How far the slide is from the training
slides (`regression.distance`) says which is taken. All of it is [ours].
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stfm_jax.models import regression
from stfm_jax.models.forest import LEAF, extra_trees
from stfm_jax.models.method import (
    Genes,
    Method,
    Prediction,
    Request,
    Run,
    Section,
    gathered,
    whole,
    within,
)
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.regression import distance, regressors, targets
from stfm_jax.regression import trees as tree_ops
from stfm_jax.regression.features import FeatureTransform, columns_of, window_mean
from stfm_jax.regression.regressors import Choice, Choices, Regressor

NEAR_ALPHA = 1e3  # of the ridge beside kernel and trees
FAR_ALPHAS = (3e3, 1e4, 3e4)  # of the ridges that are averaged for strangers
FAR_AXES = 3  # of the targets
FAR_WINDOW = 9  # spots that half of a stranger's prediction is averaged over, itself counted

_LOG = logging.getLogger("stfm_jax")


class Near(NamedTuple):
    """Fits that are averaged where a slide is near."""

    kernel: Regressor
    ridge: Regressor
    trees: tree_ops.Trees


class State(NamedTuple):
    """Both fits, and what says which is taken."""

    transform: FeatureTransform
    near: Near
    far: Regressor
    reference: distance.Reference
    choice: Choice | Choices  # of the kernel


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
        x, z = in_units.pooled
        columns = columns_of(seen.transform, x.shape[1])

        def ridge(alpha: float) -> Regressor:
            return regressors.fit("ridge", x, z, regressors.strength(alpha, columns))

        kernel = regression.fitted("kernel", slides, in_units, run.once)
        near = Near(
            targets.regressor_back(kernel.regressor, scale),
            targets.regressor_back(ridge(NEAR_ALPHA), scale),
            extra_trees(seen, run.seed),
        )
        shrunk = regressors.averaged([ridge(alpha) for alpha in FAR_ALPHAS])
        far = targets.reduced(shrunk, targets.principal_axes(z, FAR_AXES))
        return State(
            seen.transform,
            near,
            targets.regressor_back(far, scale),
            distance.fit(x, seen.groups),
            kernel.choice,
        )

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        slide, settings = case.slide, self.settings
        found = distance.ratio(state.reference, self._sample(state, case))
        share = distance.nearness(state.reference, found)
        _tell(slide.where, state.reference, found, share)

        def blocks(predict) -> Iterator[tuple]:
            for spots, x in regression.feature_blocks(settings, state.transform, slide, True):
                yield spots, predict(x)

        if share == 1.0:
            return Prediction(blocks(lambda x: _near(state.near, x)))
        rough = gathered(blocks(lambda x: regressors.predict(state.far, x)), slide.num_spots)
        far = (rough + window_mean(rough, slide.coords_um, FAR_WINDOW)) / 2
        if share == 0.0:
            return Prediction(whole(far))
        near = blocks(lambda x: share * _near(state.near, x))
        return Prediction((spots, part + (1 - share) * far[spots]) for spots, part in near)

    def _sample(self, state: State, case: Section) -> np.ndarray:
        """Features of evenly spaced spots of a slide, so many as `distance` looks at."""
        n = case.slide.num_spots
        spots = np.unique(np.linspace(0, n - 1, min(n, distance.SPOTS)).astype(int))
        return regression.features_at(self.settings, state.transform, case.slide, spots)

    def individual_data(self, state: State) -> dict[str, str]:
        near = {
            **within("kernel", regressors.individual_data(state.near.kernel)),
            **tree_ops.individual_data(state.near.trees, LEAF),
        }
        return within("near", near)

    def hyperparameters(self, state: State) -> dict[str, Any]:
        return regression.told(state.choice)


def _near(near: Near, x: np.ndarray) -> np.ndarray:
    linear = regressors.predict(near.kernel, x) + regressors.predict(near.ridge, x)
    return (linear + tree_ops.predict(near.trees, x)) / 3


def _tell(where: str, reference: distance.Reference, found: float, share: float) -> None:
    limits = [distance.usual(reference, quantile) for quantile in (distance.NEAR, distance.FAR)]
    if share < 1.0:
        _LOG.warning(
            "%s: is %.2f times as far from the training slides as these are from one another "
            "(usual: up to %.2f; a stranger: from %.2f on); %d %% of its prediction is of the fit "
            "for strangers",
            where, found, *limits, round(100 * (1 - share)),
        )  # fmt: skip
