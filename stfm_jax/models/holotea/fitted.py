"""What HoloTea estimates in closed form on training slides, and how a slide is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.slide import Slide
from stfm_jax.flow import gaussian
from stfm_jax.flow.context_prior import ContextPrior
from stfm_jax.models.stflow import flow as stflow
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

_FINGERPRINTED = 64  # spots of a slide, whose features it is known by

PyTree = Any


class FlowArrays(NamedTuple):
    """The part of Fitted that the jitted functions see."""

    base: stflow.FlowArrays
    path: gaussian.GaussianPath  # of spots with measured neighbours, about the moved anchor
    alone: gaussian.GaussianPath  # of slides without measured neighbours, about the anchor
    shares: np.ndarray  # [3, g] by which neighbours' expression moves the anchor
    mix: ContextPrior | None  # None: the base's prior
    base_params: PyTree | None = None  # of the trained base

    @property
    def gene_mean(self) -> np.ndarray:
        return self.base.gene_mean

    @property
    def gene_std(self) -> np.ndarray:
        return self.base.gene_std


class Fitted(NamedTuple):
    """What is estimated in closed form on the training slides; a pytree of arrays."""

    transform: feature_ops.FeatureTransform
    anchor: regressors.Regressor
    flow: FlowArrays
    residuals: dict  # by fingerprint of the training slide: [n, g] of the anchor, out of fold


class Neighbours(NamedTuple):
    """The other sections of a slide's stack."""

    slides: Sequence[Slide]  # registered; those with counts are measured
    genes: Sequence[str]
    expression: bool = True  # False: their images alone are seen


def fingerprint(slide: Slide) -> str:
    """By it a slide is known again, whatever file it comes from: of its places and features.

    Sections on one lattice may share their places; of the features some spots' are enough.
    """
    places = np.round(slide.coords_um - slide.coords_um.mean(axis=0)).astype(np.int64)
    spots = np.unique(np.linspace(0, slide.num_spots - 1, _FINGERPRINTED).astype(np.int64))
    features = np.asarray(feature_store.take(slide.features, spots), np.float32)
    digest = hashlib.sha256(places.tobytes())
    digest.update(np.ascontiguousarray(features).tobytes())
    return digest.hexdigest()[:32]
