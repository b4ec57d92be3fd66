"""The weighted mean of what was measured at the retrieved spots of neighbouring sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from stfm_jax.data.expression import expression
from stfm_jax.data.registration import KINDS
from stfm_jax.data.retrieval import Placed, Reach, retrieve, weighted_copy
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import (
    EMBEDDING,
    STACK,
    Genes,
    Method,
    NotApplicable,
    Prediction,
    Request,
    Run,
    Section,
    whole,
)
from stfm_jax.models.regression import RegressionSettings, seen_of
from stfm_jax.regression import features as feature_ops
from stfm_jax.settings import Settings, nested, recast, setting

NOT_MEASURED = "no other section of its stack is measured"


@dataclasses.dataclass(frozen=True)
class StackSettings(Settings):
    """How neighbours are retrieved, and what a regression sees."""

    SECTION: ClassVar[str] = "stack"

    sections: int = setting(2, least=1)  # looked at on either side
    candidates: int = setting(24, least=1)  # planar nearest of each of them
    kept: int = setting(24, least=1)  # of all candidates of a spot
    image: float = setting(0.3)  # weight of likeness; the place has the rest
    sigma_um: float = setting(150.0)  # in the plane
    z_um: float = setting(400.0)  # |dz| that costs as much as either can give
    temperature: float = setting(0.3)  # of the weights
    registration: str = setting("rigid", one_of=KINDS)  # before all this, by the problem
    flips: bool = setting(True)  # likewise
    seen: RegressionSettings = nested(RegressionSettings)  # noqa: RUF009

    @property
    def reach(self) -> Reach:
        """How neighbours are retrieved."""
        return recast(Reach, self)


class State(NamedTuple):
    """Principal axes, by which spots are found alike."""

    transform: feature_ops.FeatureTransform


class NeighbourCopy(Method):
    """The trivial use of a stack."""

    name = "neighbour_copy"
    needs = frozenset({EMBEDDING, STACK})
    Settings = StackSettings
    State = State

    expressed = True  # a prediction looks at what neighbours measured

    def placed(self, state: State, slides: Sequence[Slide]) -> list[Placed]:
        """Sections of a stack as they are retrieved from."""
        return placed(slides, state.transform)

    def lacks(self, case: Section) -> str:
        return "" if measured_of(case) else NOT_MEASURED

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        seen = seen_of(self.settings.seen, slides, genes.scored, True, run.seed, run.once)
        return State(seen.transform)

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        slide, others = case.slide, measured_of(case)
        normalization = self.settings.seen.normalization
        expr = [expression(s, request.genes.scored, normalization) for s in others]
        own = own_features(state.transform, (slide, *others))
        copied = neighbour_copy(slide, others, expr, own, self.settings.reach)
        if copied is None:
            raise NotApplicable(f"{slide.where}: {NOT_MEASURED}")
        return Prediction(whole(copied))


def measured_of(case: Section) -> list[Slide]:
    """The other sections of a slide's stack that have counts."""
    return [s for s in others_of(case) if s.counts is not None]


def others_of(case: Section) -> list[Slide]:
    """The other sections of a slide's stack that may be looked at."""
    return [s for s in case.others if in_stack(s, case.slide)]


def in_stack(other: Slide, slide: Slide) -> bool:
    """Whether it is another section of the same stack."""
    return other.patient == slide.patient and other.name != slide.name


def placed(slides: Sequence[Slide], transform) -> list[Placed]:
    """Registered slides as retrieval takes them."""
    own = [feature_ops.own_features(transform, s.features) for s in slides]
    return [Placed(s.name, _place(s), s.z_um, f) for s, f in zip(slides, own, strict=True)]


def _place(slide: Slide) -> np.ndarray:
    if slide.registered_um is None or slide.z_um is None:
        raise InputError(
            f"{slide.where}: has no place in its stack; register its sections first "
            "(stfm_jax.data.stack)."
        )
    return slide.registered_um


def own_features(transform, slides: Sequence[Slide]) -> dict[str, np.ndarray]:
    """Principal components [n, p] of every slide, by name."""
    return {s.name: feature_ops.own_features(transform, s.features) for s in slides}


def neighbour_copy(
    slide: Slide,
    measured: Sequence[Slide],
    expr: Sequence[np.ndarray],
    own: Mapping[str, np.ndarray],
    reach: Reach,
) -> np.ndarray | None:
    """What was measured around a slide's spots on the others of its stack, None without any.

    Args:
      slide: registered.
      measured: registered slides; the slide itself and those of other stacks are left out here.
      expr: [n_j, g] of each of them.
      own: principal components [n, p] of every slide, by name.
      reach: how neighbours are retrieved.
    """
    near = [i for i, s in enumerate(measured) if in_stack(s, slide)]
    if not near:
        return None
    stack = [slide, *(measured[i] for i in near)]
    placed = [Placed(s.name, _place(s), s.z_um, own[s.name]) for s in stack]
    found = retrieve(placed, 0, range(len(stack)), reach)
    return weighted_copy(found, [None, *(expr[i] for i in near)], expr[near[0]].shape[1])[0]
