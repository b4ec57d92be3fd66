"""STFlow as a method: trained on slides, it predicts the joint expression of another's spots."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from stfm_jax.data.batching import spacing_units
from stfm_jax.data.regions import Regions
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models import regression, sharded, strangers
from stfm_jax.models.method import (
    Blocks,
    Genes,
    Method,
    Prediction,
    Request,
    Section,
    whole,
    within,
)
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.models.stflow import memory, whole_slide
from stfm_jax.models.stflow.flow import Fitted, STFlow, TrainingSet
from stfm_jax.models.stflow.settings import STFlowSettings, default_tile
from stfm_jax.models.stflow.tower import TowerAlone
from stfm_jax.models.strangers import Strangers
from stfm_jax.ops import metrics
from stfm_jax.regression import regressors
from stfm_jax.runtime import progress
from stfm_jax.runtime.devices import fetch, replicate
from stfm_jax.train.stages import Outcome, Run, Stage, select_and_refit

# Spots of a tile in training, at least, unless the config says: a region of so many is one, which
# is padded less, and there is no loop over tiles to compile [ours].
TRAINED_TILE = 512


class State(NamedTuple):
    """A trained STFlow."""

    fitted: Fitted
    params: dict
    residuals: np.ndarray | None  # [n, targets] of the anchor on the training spots, out of fold;
    # for `anchor`, which draws them
    epochs: int  # it was trained for
    strangers: Strangers | None = None  # for slides far from the training slides


class STFlowMethod(Method):
    """Trains and applies `flow.STFlow`."""

    name = "stflow"
    draws_as = "stflow_draw"
    compared_with = ("anchor", "ridge", "ridge_smooth", "ridge_context", "kernel_ridge")
    papers = ("STFlow, arXiv 2506.05361",)
    Settings = STFlowSettings
    State = State

    def check(self, slides: Sequence[Slide], devices: int) -> None:
        if devices > 1 and self.settings.attention == "segments":
            raise InputError(
                f"config.model.attention=segments works on one device, found {devices}; set "
                "--config.devices=1, or --config.model.attention=tiled."
            )
        check_sizes(slides, self.settings.neighbors)

    def check_input(self, slide: Slide) -> None:
        if slide.num_spots <= self.settings.neighbors:
            raise InputError(
                f"{slide.where}: has {slide.num_spots} spots; the model needs more than "
                f"{self.settings.neighbors}, its number of neighbours."
            )

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        *_, last = self.outcomes(slides, genes, run).values()
        return State(
            last.fitted.fitted,
            fetch(last.trained.params),
            last.fitted.residuals,
            last.epochs,
            self.strangers(slides, genes, run),
        )

    def strangers(self, slides: Sequence[Slide], genes: Genes, run: Run) -> Strangers | None:
        """What it stands back to on slides far from these; None where it does not."""
        if not self.settings.stands_back:
            return None
        seen = regression.seen_of(self.seen, slides, genes.targets, True, run.seed, run.once)
        return strangers.fit(slides, seen, [self.settings.anchor], run.once)

    @property
    def seen(self) -> RegressionSettings:
        """What regressions see."""
        return self.settings.flow(0).seen

    def outcomes(self, slides: Sequence[Slide], genes: Genes, run: Run) -> dict[str, Outcome]:
        """What was fitted and trained in each stage; HoloTea stands on the last."""
        flow = self.settings.flow(len(genes.targets))

        def make() -> dict[str, Outcome]:
            return select_and_refit(
                run,
                run.settings.epochs,
                lambda: self._selection(flow, slides, genes, run),
                lambda: self._refit(flow, slides, genes, run),
            )

        return run.once(make, slides, self.name, flow, genes.targets, run.seed)

    def _selection(
        self, flow: STFlow, slides: Sequence[Slide], genes: Genes, run: Run
    ) -> tuple[TrainingSet, Stage]:
        """What is fitted to all slides but the one held out, by whose Pearson epochs are chosen."""
        part, held = run.held_out(slides)
        training = flow.training_set(part, genes.targets, run.seed, run.once)
        stage = stage_of(flow, training, run, self._score(flow, training, held, genes, run))
        if _by_tower(flow, run):
            stage = stage._replace(trainable=TowerAlone(flow))
        return training, stage

    def trained_on_part(self, slides: Sequence[Slide], genes: Genes, run: Run) -> Outcome:
        """The whole network of the selection's best epoch; HoloTea's selection stands on it."""
        found = self.outcomes(slides, genes, run)["select"]
        flow = self.settings.flow(len(genes.targets))
        if not _by_tower(flow, run):
            return found
        stage = stage_of(flow, found.fitted, run)
        return found._replace(trained=run.stage("part", stage, found.epochs))

    def _refit(
        self, flow: STFlow, slides: Sequence[Slide], genes: Genes, run: Run
    ) -> tuple[TrainingSet, Stage]:
        """What is fitted to all slides."""
        training = flow.training_set(slides, genes.targets, run.seed, run.once)
        return training, stage_of(flow, training, run)

    def _score(
        self, flow: STFlow, training: TrainingSet, held: Slide, genes: Genes, run: Run
    ) -> Callable[[Any], float]:
        """Parameters -> mean gene-wise Pearson of the mean on the held-out slide."""
        prepared = flow.prepare(held, training.fitted, genes.targets)
        batch = sharded.batch_of(flow, run.mesh, prepared)
        arrays = replicate(run.mesh, training.fitted.flow)
        key = jax.random.key(run.seed)

        def score(params) -> float:
            mean = sharded.posterior_mean(flow, run.mesh, params, arrays, batch, key, 1)
            return metrics.mean_over_genes(metrics.pearson(mean, prepared.expr))[0]

        return score

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        """Mean and draws; both stand back where a slide is far from the training slides."""
        flow = self.settings.flow(len(request.genes.targets))

        def predicted(clip: bool) -> Prediction:
            return _predicted(dataclasses.replace(flow, clip=clip), state, case.slide, request)

        return standing_back(predicted, flow.seen, state, case, request)

    def needed(self, state: State) -> State:
        return state._replace(residuals=None)

    def individual_data(self, state: State) -> dict[str, str]:
        return individual_data(state)

    def bytes_needed(self, state: State, num_spots: int, request: Request) -> int:
        targets = len(request.genes.targets)
        flow = self.settings.flow(targets)
        return memory.bytes_needed(flow, state.fitted, targets, num_spots, request.draws)


def _by_tower(flow: STFlow, run: Run) -> bool:
    """Whether epochs are selected by the tower alone; where nothing is refitted, it is kept."""
    return flow.mean_is_closed and run.settings.refit


def standing_back(
    predicted: Callable[[bool], Prediction],
    seen: RegressionSettings,
    state: Any,
    case: Section,
    request: Request,
) -> Prediction:
    """What a flow predicts, as far as it does not stand back; see `models.strangers`.

    Args:
      predicted: (whether to clip at 0) -> its prediction.
      seen: what regressions see.
      state: with `strangers`, None where it never stands back.
      case: to predict.
      request: how.
    """
    if state.strangers is None:
        return predicted(True)
    known = state.fitted.transform, case.slide
    standing = strangers.standing(state.strangers, seen, *known, case.familiar)
    if standing.share == 1.0 and case.familiar:
        return predicted(True)._replace(standing=standing)
    unclipped = functools.partial(predicted, False)
    return strangers.stood_back(state.strangers, standing, *known, unclipped, request)


def individual_data(state: Any) -> dict[str, str]:
    """What a state with an anchor and its residuals holds of single training spots."""
    held = within("fitted/anchor", regressors.individual_data(state.fitted.anchor))
    if state.residuals is None:
        return held
    n, g = state.residuals.shape
    return {**held, "residuals": f"of {n} single training spots: measured less fitted, {g} genes"}


def check_sizes(slides: Sequence[Slide], neighbors: int) -> None:
    """Raises InputError for a slide too small to draw regions from."""
    for slide in slides:
        if slide.num_spots <= 4 * neighbors:
            raise InputError(
                f"{slide.where}: has {slide.num_spots} spots, too few for regions of "
                f"{4 * neighbors} with {neighbors} neighbours each; leave the slide out or lower "
                "--config.model.neighbors."
            )


def stage_of(
    flow: Any, training: TrainingSet, run: Run, score: Callable[[Any], float] | None = None
) -> Stage:
    """The stage that trains a flow on a training set's regions."""
    settings = run.settings
    tile = max(flow.tile, TRAINED_TILE) if flow.tile == default_tile() else flow.tile
    regions = Regions(
        training.slides,
        flow.neighbors,
        tile,
        per_slide=settings.regions_per_slide,
        whole_share=settings.whole_share,
        per_step=settings.slides_per_step,
        accumulate=settings.accumulate,
    )
    return Stage(flow, regions, training.fitted.flow, score)


def in_one_call(flow: Any, state: Any, prepared, request: Request) -> Prediction:
    """Mean and draws of a prepared slide, whose rows the devices share."""
    mesh, key = request.mesh, jax.random.key(request.seed)
    params, arrays = replicate(mesh, (state.params, state.fitted.flow))
    batch = sharded.batch_of(flow, mesh, prepared)
    arguments = (flow, mesh, params, arrays, batch, key)
    mean = sharded.posterior_mean(*arguments, request.mean_draws)

    def draws() -> Iterator[Blocks]:
        yield from map(whole, sharded.sample(*arguments, request.draws))

    return Prediction(whole(mean), draws())


def _predicted(flow: STFlow, state: State, slide: Slide, request: Request) -> Prediction:
    """Mean and draws of the flow; in chunks on one device where `whole_slide.pays` says so."""
    if request.mesh.size == 1 and whole_slide.pays(slide.num_spots):
        return _in_chunks(flow, state, slide, request)
    return in_one_call(flow, state, flow.prepare(slide, state.fitted), request)


def _in_chunks(flow: STFlow, state: State, slide: Slide, request: Request) -> Prediction:
    """Mean and draws of a large slide; neither all features nor all draws are held."""
    rows = whole_slide.Rows(
        name=slide.name,
        coords=spacing_units(slide.coords_um),
        place=np.arange(slide.num_spots, dtype=np.int32),
        blocks=flow.prepare_blocks(slide, state.fitted),
    )
    key, arrays = jax.random.key(request.seed), jax.device_put(state.fitted.flow)
    encoded = whole_slide.encode(flow, state.params, arrays, rows)
    per_evaluation = len(encoded.place) * flow.network.num_blocks
    arguments = (flow, state.params, arrays, encoded, key)

    def bar(what: str, evaluations: int) -> tqdm:
        desc = f"{rows.name}: {what}, {evaluations} network evaluations"
        return progress.bar(desc, evaluations * per_evaluation, "spot-layer", unit_scale=True)

    def draws() -> Iterator[Blocks]:
        count = request.draws
        with bar(f"{count} draws", count * flow.evaluations) as drawing:
            yield from map(whole, whole_slide.sample(*arguments, count, drawing.update))

    if flow.mean_is_closed:
        return Prediction(whole(whole_slide.posterior_mean(*arguments, 1)), draws())
    with bar("mean", request.mean_draws) as averaging:
        mean = whole_slide.posterior_mean(*arguments, request.mean_draws, averaging.update)
    return Prediction(whole(mean), draws())
