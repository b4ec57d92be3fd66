"""Every row of a fold: regressions, the method (and the base it stands on), single draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.batching import PreparedSlide
from stfm_jax.data.expression import expression
from stfm_jax.data.slide import Slide
from stfm_jax.eval import evaluate
from stfm_jax.eval.model_store import Model
from stfm_jax.models.baselines import regression
from stfm_jax.models.baselines import stack as stack_baselines
from stfm_jax.models.holotea import Neighbours


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Of the test slides of a fold, per slide, by row."""

    test: evaluate.TestSet
    points: dict[str, list[np.ndarray]]  # [n_i, g]
    draws: dict[str, list[np.ndarray]]  # [m, n_i, g]
    hyperparameters: dict[str, dict]


def predict(
    model: Model, names: Sequence[str], train: Sequence[Slide], test: Sequence[Slide], config: Any,
    mesh: Mesh,
) -> Predictions:  # fmt: skip
    """Predicts the test slides by every row.

    Args:
      model: trained on `train`.
      names: of the test slides.
      train: slides whose expression may be looked at.
      test: slides to predict.
      config: for seed, context and numbers of draws.
      mesh: devices that share a slide.
    """
    genes, g = list(model.genes), len(model.genes)
    normalization, transform = config.data.normalization, model.fitted.transform
    points, choices = regression.predictions(
        train, test, genes, normalization, transform, config.model.context
    )
    hyperparameters = {name: choice._asdict() for name, choice in choices.items()}
    if model.task.base is not None:
        copies, weight = stack_baselines.predictions(
            train, test, genes, normalization, transform, config.model.context, model.task.reach,
            points["kernel_ridge"], choices["kernel_ridge"],
        )  # fmt: skip
        points |= copies
        hyperparameters["centred_sum"] = {"weight": weight}
    draws: dict[str, list[np.ndarray]] = {}
    for name, one, expressed in rows(model):
        prepared = [prepare(one, slide, train, expressed) for slide in test]
        if not draws:
            points["anchor"] = [np.maximum(p.anchor, 0.0)[:, :g] for p in prepared]
            rng = np.random.default_rng(config.seed)
            draws["anchor_residual"] = [
                anchor_residual(p.anchor, model.residuals, rng, config.sample.draws)[..., :g]
                for p in prepared
            ]
        sizes = config.sample.draws, config.sample.mean_draws
        predicted = [one.predict(p, config.seed, *sizes, mesh) for p in prepared]
        points[name] = [mean[:, :g] for mean, _ in predicted]
        draws[f"{name}_draw"] = [sampled[..., :g] for _, sampled in predicted]
    expr = [expression(slide, genes, normalization) for slide in test]
    around = points.get("neighbour_copy")
    test_set = evaluate.TestSet(tuple(names), [s.coords_um for s in test], expr, around)
    return Predictions(test_set, points, draws, hyperparameters)


def rows(model: Model) -> Iterator[tuple[str, Model, bool]]:
    """Name, model, and whether it sees measured neighbours' expression, the base first."""
    if model.task.base is None:
        yield model.task.name, model, False
        return
    yield model.task.base.name, model.base, False
    yield f"{model.task.name}_he", model, False
    if model.task.see_expression:
        yield model.task.name, model, True


def prepare(
    model: Model, slide: Slide, measured: Sequence[Slide], expressed: bool
) -> PreparedSlide:
    """A slide to score; of a stack, with what is measured on its other sections."""
    if model.task.base is None:
        return model.task.prepare(slide, model.fitted, model.targets)
    neighbours = Neighbours(measured, model.targets, expressed)
    return model.task.prepare(slide, model.fitted, model.targets, neighbours)


def anchor_residual(
    anchor: np.ndarray, residuals: np.ndarray, rng: np.random.Generator, draws: int
) -> np.ndarray:
    """The plain way to draws with structure: anchor [n, g] + resampled residuals, [draws, n, g].

    Residual vectors [m, g] are out of fold, so that they are as large as on unseen slides.
    """
    picked = rng.integers(len(residuals), size=(draws, len(anchor)))
    return np.maximum(anchor + residuals[picked], 0.0)
