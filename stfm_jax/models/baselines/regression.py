"""The regressions every method is compared with, on the same features, genes and slides.

| row | what |
|---|---|
| mean | each gene's mean over the training spots |
| ridge | ridge on a spot's own features |
| ridge_smooth | its prediction averaged over the spot and its 8 nearest neighbours |
| ridge_context | ridge on own features and their means over the neighbourhoods |
| kernel_ridge | RBF kernel ridge on the same context features |

Hyperparameters are chosen by leaving out whole training slides (regression.regressors.choose).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.data.expression import expression
from stfm_jax.data.slide import Slide
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

SMOOTHING = 9  # the spot and its 8 nearest, ties kept


def predictions(
    train: Sequence[Slide],
    test: Sequence[Slide],
    genes: Sequence[str],
    normalization: str,
    transform: feature_ops.FeatureTransform,
    context: Sequence[int],
) -> tuple[dict[str, list[np.ndarray]], dict[str, regressors.Choice]]:
    """Every row's prediction [n, g] of every test slide, and the hyperparameters chosen.

    Args:
      train: training slides.
      test: slides to predict; their expression is not looked at.
      genes: the g genes.
      normalization: of the expression.
      transform: feature transform fitted on the training slides.
      context: sizes of the neighbourhoods of the context features.
    """

    def own(slide):
        return feature_ops.own_features(transform, slide.features)

    def around(slide):
        return feature_ops.context_features(transform, slide.features, slide.coords_um, context)

    y = np.concatenate([expression(slide, genes, normalization) for slide in train])
    groups = regressors.leave_out_groups(
        [slide.num_spots for slide in train], [slide.coords_um for slide in train]
    )
    rows = {"mean": [np.tile(y.mean(axis=0), (slide.num_spots, 1)) for slide in test]}
    choices = {}
    for name, kind, see in (
        ("ridge", "ridge", own),
        ("ridge_context", "ridge", around),
        ("kernel_ridge", "kernel", around),
    ):
        x = np.concatenate([see(slide) for slide in train])
        choices[name] = regressors.choose(kind, x, y, groups)
        regressor = regressors.fit(kind, x, y, choices[name])
        rows[name] = [regressors.predict(regressor, see(slide)) for slide in test]
    rows["ridge_smooth"] = [
        feature_ops.window_mean(prediction, slide.coords_um, SMOOTHING)
        for prediction, slide in zip(rows["ridge"], test, strict=True)
    ]
    order = ("mean", "ridge", "ridge_smooth", "ridge_context", "kernel_ridge")
    return {name: rows[name] for name in order}, choices
