"""What the regressions share: features seen, targets, hyperparameters, and a fit made once.

Each regression is a method of its own (`ridge.py`, ...), which says what is fitted to what. The
flow stands on the same fits (`stflow.flow`), so those are made here and kept for the fold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.expression import NORMALIZATIONS, expression
from stfm_jax.data.slide import Slide
from stfm_jax.models.method import Genes, Method, Prediction, Request, Run, Section, within
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors, targets
from stfm_jax.settings import Settings, setting

Once = Callable[..., Any]  # see `models.method.Run.once`


@dataclasses.dataclass(frozen=True)
class RegressionSettings(Settings):
    """What a regression sees of a slide, and what it is fitted to."""

    SECTION: ClassVar[str] = "model"

    components: int = setting(256, at="model.components")  # principal axes of the features
    context: tuple[int, ...] = setting((9, 25, 60), at="model.context")  # neighbourhoods
    standardize: str = setting("slide", at="data.standardize", one_of=feature_ops.STANDARDIZATIONS)
    normalization: str = setting("log1p", at="data.normalization", one_of=NORMALIZATIONS)


class Seen(NamedTuple):
    """What regressions are fitted to, of all training spots."""

    transform: feature_ops.FeatureTransform
    x: list[np.ndarray]  # per slide [n_i, f]
    y: list[np.ndarray]  # per slide [n_i, g]
    groups: np.ndarray  # [n] what is left out together
    seed: int  # of all this, and of what is fitted to it
    key: tuple[Hashable, ...]  # what all this depends on beside the slides
    by_patient: bool  # whether groups are patients

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Features [n, f] and expression [n, g] of all slides."""
        return np.concatenate(self.x), np.concatenate(self.y)


class Fit(NamedTuple):
    """A regressor and how it was chosen."""

    regressor: regressors.Regressor
    choice: regressors.Choice | regressors.Choices


class State(NamedTuple):
    """A regression fitted to training slides."""

    transform: feature_ops.FeatureTransform
    regressor: regressors.Regressor
    choice: regressors.Choice | regressors.Choices


@dataclasses.dataclass(frozen=True)
class Regression(Method):
    """Base of the regressions: subclasses say `kind` and `around`."""

    settings: RegressionSettings

    kind: ClassVar[str]  # of regressors.fit
    around: ClassVar[bool]  # whether neighbourhoods' features are seen beside the spot's own
    Settings = RegressionSettings
    State = State

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        seen = seen_of(self.settings, slides, genes.scored, self.around, run.seed, run.once)
        found = fitted(self.kind, slides, seen, run.once)
        return State(seen.transform, *found)

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        blocks = feature_blocks(self.settings, state.transform, case.slide, self.around)
        return Prediction((at, regressors.predict(state.regressor, x)) for at, x in blocks)

    def individual_data(self, state: State) -> dict[str, str]:
        return within("regressor", regressors.individual_data(state.regressor))

    def hyperparameters(self, state: State) -> dict[str, Any]:
        return told(state.choice)

    def narrowed(self, state: State, kept: Sequence[int]) -> State:
        transform, regressor = narrowed(state.transform, state.regressor, kept)
        choice = regressors.narrowed(state.choice, kept, list(regressor.columns.values()))
        return State(transform, regressor, choice)

    def bytes_needed(self, state: State, num_spots: int, request: Request) -> int:
        """Principal components, which neighbourhoods are averaged from, and the prediction."""
        components, g = state.transform.components.shape[1], regressors.num_genes(state.regressor)
        return (1 << 28) + 4 * num_spots * (components + 3 * g)


def told(choice: regressors.Choice | regressors.Choices) -> dict[str, Any]:
    """Hyperparameters, for scores.json."""
    if isinstance(choice, regressors.Choices):
        return {f"encoder_{i}": each._asdict() for i, each in choice.of.items()}
    return choice._asdict()


def compute(make: Callable[[], Any], slides: Sequence[Any], *key: Hashable) -> Any:
    """`Run.once` where nothing is shared."""
    return make()


def seen_of(
    settings: RegressionSettings,
    slides: Sequence[Slide],
    genes: Sequence[str],
    around: bool,
    seed: int,
    once: Once = compute,
) -> Seen:
    """What a regression of some genes on some slides is fitted to."""
    scaling = settings.standardize, settings.components, seed
    transform = once(
        lambda: feature_ops.fit_transform(
            [s.features for s in slides], *scaling, slides[0].widths
        ),
        slides, "transform", scaling,
    )  # fmt: skip
    seen = scaling, settings.context if around else None
    x = once(
        lambda: [features_of(settings, transform, slide, around) for slide in slides],
        slides, "features", seen,
    )  # fmt: skip
    y = [expression(slide, genes, settings.normalization) for slide in slides]
    sizes, coords = [s.num_spots for s in slides], [s.coords_um for s in slides]
    patients = [slide.patient for slide in slides]
    by_patient = all(patients) and len(set(patients)) > 1
    groups = once(
        lambda: regressors.leave_out_groups(sizes, coords, seed, patients if by_patient else ()),
        slides, "groups", seed,
    )  # fmt: skip
    key = seen, settings.normalization, tuple(genes)
    return Seen(transform, x, y, groups, seed, key, by_patient)


def scaled(seen: Seen) -> tuple[Seen, targets.Scale]:
    """The same with targets in units of their slide, and the way back."""
    y, scale = targets.per_slide(seen.y)
    return seen._replace(y=y, key=(*seen.key, "scaled")), scale


def fitted(kind: str, slides: Sequence[Slide], seen: Seen, once: Once = compute) -> Fit:
    """The regressor with the hyperparameters that do best on the groups left out."""

    def make() -> Fit:
        x, y = seen.pooled
        columns = feature_ops.columns_of(seen.transform, x.shape[1])
        choice = regressors.choose_each(kind, x, y, seen.groups, columns, seen.seed)
        return Fit(regressors.fit(kind, x, y, choice, seen.seed), choice)

    return once(make, slides, "fit", kind, seen.key)


def unseen(kind: str, slides: Sequence[Slide], seen: Seen, fit: Fit, once: Once = compute):
    """Prediction [n, g] of the training spots, each by a regressor that never saw its group."""
    return once(
        lambda: regressors.out_of_fold(kind, *seen.pooled, seen.groups, fit.choice, seen.seed),
        slides, "unseen", kind, seen.key,
    )  # fmt: skip


def narrowed(transform, regressor: regressors.Mean, kept: Sequence[int]):
    """Both for slides with the features of some encoders only; see `Method.narrowed`."""
    scales = len(regressor.columns["0"]) // int(transform.axes[0])
    transform = feature_ops.narrowed(transform, kept)
    columns = feature_ops.columns_of(transform, scales * transform.components.shape[1])
    return transform, regressors.narrowed(regressor, kept, columns)


def features_of(settings: RegressionSettings, transform, slide: Slide, around: bool) -> np.ndarray:
    """Features [n, f] of a slide as a regression sees them."""
    if not around:
        return feature_ops.own_features(transform, slide.features)
    return feature_ops.context_features(
        transform, slide.features, slide.coords_um, settings.context
    )


def feature_blocks(settings: RegressionSettings, transform, slide: Slide, around: bool):
    """Some spots [m] and their features [m, f] at a time, as `features_of` makes them."""
    if not around:
        for spots, x in feature_ops.standardized_blocks(transform, slide.features):
            yield spots, x @ transform.components
        return
    context = context_of(settings, transform, slide)
    for spots in feature_store.spans(slide.num_spots):
        yield spots, context(spots)


def context_of(settings: RegressionSettings, transform, slide: Slide):
    """A function that makes own and neighbourhoods' features [m, f] of some spots [m]."""
    return feature_ops.context_reader(transform, slide.features, slide.coords_um, settings.context)
