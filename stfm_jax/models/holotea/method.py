"""HoloTea as a method: it predicts a section from its images and the rest of its stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from stfm_jax.data.retrieval import Placed
from stfm_jax.data.slide import Slide
from stfm_jax.models import sharded
from stfm_jax.models.holotea.fitted import Fitted, Neighbours, fingerprint
from stfm_jax.models.holotea.flow import HoloTea
from stfm_jax.models.holotea.settings import HoloTeaSettings
from stfm_jax.models.method import EMBEDDING, STACK, Genes, Method, Prediction, Request, Section
from stfm_jax.models.neighbour_copy import NOT_MEASURED, measured_of, others_of, placed
from stfm_jax.models.stflow.method import (
    STFlowMethod,
    in_one_call,
    individual_data,
    stage_of,
    standing_back,
)
from stfm_jax.models.strangers import Strangers
from stfm_jax.runtime.devices import fetch, replicate
from stfm_jax.train.stages import Outcome, Run, Stage, select_and_refit

VALIDATION_DRAWS = 16  # of time and prior, the same for every epoch


class State(NamedTuple):
    """A trained HoloTea, with the STFlow that it stands on."""

    fitted: Fitted
    params: dict
    residuals: np.ndarray | None  # [n, targets] of the anchor on the training spots, out of fold
    epochs: int  # it was trained for, under control
    strangers: Strangers | None = None  # for slides far from the training slides


class HoloTeaMethod(Method):
    """Trains and applies `flow.HoloTea`, with the expression that neighbours measured."""

    name = "holotea"
    needs = frozenset({EMBEDDING, STACK})
    stands_on = ("stflow",)
    draws_as = "holotea_draw"
    compared_with = ("holotea_he", "stflow", "centred_sum", "neighbour_copy", "kernel_ridge")
    papers = ("HoloTea, arXiv 2511.14613", *STFlowMethod.papers)
    Settings = HoloTeaSettings
    State = State

    images_alone: ClassVar[bool] = False  # whether neighbours' expression is not looked at

    @property
    def expressed(self) -> bool:
        """Whether a prediction looks at what neighbours measured."""
        return self.settings.expression and not self.images_alone

    @property
    def base(self) -> STFlowMethod:
        """The method it stands on."""
        return STFlowMethod(self.settings.stflow)

    def check(self, slides: Sequence[Slide], devices: int) -> None:
        self.base.check(slides, devices)

    def check_input(self, slide: Slide) -> None:
        self.base.check_input(slide)

    def trained_on(self, state: State, slide: Slide) -> bool:
        return fingerprint(slide) in state.fitted.residuals

    def placed(self, state: State, slides: Sequence[Slide]) -> list[Placed]:
        """Sections of a stack as they are retrieved from."""
        return placed(slides, state.fitted.transform)

    def lacks(self, case: Section) -> str:
        if self.expressed:
            return "" if measured_of(case) else NOT_MEASURED
        return "" if others_of(case) else "no other section of its stack is seen"

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides, flow = [case.slide for case in cases], self.settings.flow(len(genes.targets))
        base = slides, genes, run.of(self.base.name)
        outcomes = select_and_refit(
            run,
            self.settings.epochs,
            lambda: self._selection(flow, slides, genes, run, self.base.trained_on_part(*base)),
            lambda: self._stage(flow, slides, genes, run, self.base.outcomes(*base)["refit"]),
        )
        *_, last = outcomes.values()
        fitted = fetch(last.fitted.fitted)  # with the base's parameters
        trained = fetch(last.trained.params), last.fitted.residuals, last.epochs
        return State(fitted, *trained, self.base.strangers(slides, genes, run))

    def _selection(
        self, flow: HoloTea, slides: Sequence[Slide], genes: Genes, run: Run, base: Outcome
    ) -> tuple[Any, Stage]:
        part, held = run.held_out(slides)
        training, stage = self._stage(flow, part, genes, run, base)
        neighbours = Neighbours(slides, genes.targets)
        prepared = flow.prepare(held, training.fitted, genes.targets, neighbours)
        return training, stage._replace(score=_score(flow, training, prepared, run))

    def _stage(
        self, flow: HoloTea, slides: Sequence[Slide], genes: Genes, run: Run, base: Outcome
    ) -> tuple[Any, Stage]:
        """What is fitted to slides, standing on what the base was trained to on the same."""
        base = base.fitted, base.trained.params
        training = flow.training_set(slides, genes.targets, *base, run.seed)
        return training, stage_of(flow, training, run)

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        """Mean and draws; where no neighbour was measured, they stand back as STFlow's do."""
        genes = request.genes.targets
        flow = self.settings.flow(len(genes))
        seen = Neighbours(case.others, genes, self.expressed)
        prepared = flow.prepare(case.slide, state.fitted, None, seen)

        def predicted(clip: bool) -> Prediction:
            base = dataclasses.replace(flow.base, clip=clip)
            return in_one_call(dataclasses.replace(flow, base=base), state, prepared, request)

        if self.expressed and measured_of(case):
            return predicted(True)
        return standing_back(predicted, flow.base.seen, state, case, request)

    def needed(self, state: State) -> State:
        return state._replace(residuals=None)

    def individual_data(self, state: State) -> dict[str, str]:
        of_slides = state.fitted.residuals
        spots = sum(len(residuals) for residuals in of_slides.values())
        known = f"fingerprints of {len(of_slides)} training slides, by which each is known again"
        seen = f"; measured less fitted of {spots} single training spots" if spots else ""
        return {**individual_data(state), "fitted/residuals": known + seen}


class HoloTeaFromImages(HoloTeaMethod):
    """The state of `holotea`, predicted from the stack's images alone."""

    name = "holotea_he"
    stands_on = ()
    state_of = "holotea"
    draws_as = "holotea_he_draw"
    compared_with = ("stflow", "kernel_ridge")
    images_alone = True

    def needed(self, state: State) -> State:
        """Without residuals; which slides were trained on is known still."""
        known = {name: residuals[:0] for name, residuals in state.fitted.residuals.items()}
        return super().needed(state._replace(fitted=state.fitted._replace(residuals=known)))


def _score(flow: HoloTea, training: Any, prepared: Any, run: Run) -> Callable[[Any], float]:
    """Parameters -> minus the loss on a slide; the mean hardly depends on what is trained."""
    batch = sharded.batch_of(flow, run.mesh, prepared)
    arrays, key = replicate(run.mesh, training.fitted.flow), jax.random.key(run.seed)

    def score(params) -> float:
        arguments = flow, run.mesh, params, arrays, batch, key
        return -sharded.validation_loss(*arguments, VALIDATION_DRAWS)

    return score
