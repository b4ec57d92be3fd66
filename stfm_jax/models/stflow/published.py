"""STFlow in its published form, a row beside ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from stfm_jax.data.expression import NORMALIZATIONS
from stfm_jax.models.method import Genes, Prediction, Request, Run, Section
from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.models.stflow.method import State, STFlowMethod
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.regression.features import STANDARDIZATIONS
from stfm_jax.settings import Settings, recast, setting

# Sizes are those of `STFlowSettings`, which are published.
_FORM = {
    "expression": "differences",
    "anchor": "none",
    "token_context": False,
    "frames": "pca",
    "time_scale": 1.0,
    "image_weight": 0.0,
    "prior": "zinb_scalar",
    "loss_weight": "data",
}
_TRAINING = {  # the published optimizer and regions; no average of the parameters is told of
    "learning_rate": 5e-4,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "clip_norm": 1.0,
    "ema_decay": 0.0,
    "regions_per_slide": 10,
    "whole_share": 0.0,
    "slides_per_step": 1,
    "accumulate": 1,
}


@dataclasses.dataclass(frozen=True)
class PublishedSettings(Settings):
    """What the paper leaves to its user: data, and how a machine holds them."""

    SECTION: ClassVar[str] = "model"

    tile: int = setting(0)
    edge_cache_gib: float = setting(0.0)
    standardize: str = setting("slide", at="data.standardize", one_of=STANDARDIZATIONS)
    normalization: str = setting("log1p", at="data.normalization", one_of=NORMALIZATIONS)

    @property
    def form(self) -> STFlowSettings:
        """As fields of ours."""
        return recast(STFlowSettings, self, **_FORM)

    @property
    def neighbors(self) -> int:
        return self.form.neighbors

    @property
    def attention(self) -> str:
        return self.form.attention

    @property
    def stands_back(self) -> bool:
        return self.form.stands_back

    def flow(self, num_genes: int) -> STFlow:
        """The flow for this many genes."""
        return self.form.flow(num_genes)


class STFlowPublished(STFlowMethod):
    """The published network, prior, loss, optimizer and regions, whatever `model` and `train` say.

    Of `train` it takes the epochs, at most, and how they are selected; of `sample` the draws. Not
    as published, since it is so for all rows [ours]: epochs are chosen on training slides,
    coordinates are in units of the spots' distance, features are standardised, neighbours that tie
    are kept, nothing below 0 is predicted. The scored genes are all that it is trained on. A draw
    takes five network evaluations from t = 0, as the paper says; its code takes four from .01. What
    the paper scores is a draw, the row `stflow_published_draw`.
    """

    name = "stflow_published"
    draws_as = "stflow_published_draw"
    compared_with = ("stflow", "kernel_ridge")
    Settings = PublishedSettings

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        settings = dataclasses.replace(run.settings, **_TRAINING)
        state = super().fit(cases, _scored(genes), dataclasses.replace(run, settings=settings))
        return self.needed(state)  # no row draws its residuals

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        return super().predict(state, case, _of_scored(request))

    def bytes_needed(self, state: State, num_spots: int, request: Request) -> int:
        return super().bytes_needed(state, num_spots, _of_scored(request))


def _scored(genes: Genes) -> Genes:
    """Genes to train on: those that are scored."""
    return Genes(genes.scored, genes.scored)


def _of_scored(request: Request) -> Request:
    return dataclasses.replace(request, genes=_scored(request.genes))
