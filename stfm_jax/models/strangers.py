"""What is predicted of a slide unlike the training slides, and what says that it is one.

Of what the image says of expression, little carries over to a patient never seen before, and a
flexible fit spends itself on the rest. So a second fit, for strangers, sees a spot's own features
alone, is strongly shrunk, keeps the few axes that make up most of what it says (reduced-rank
regression, Izenman 1975), and is half averaged over neighbouring spots. How far the slide is
(`regression.distance`) says how much of the flexible fit stays; where several patients are trained
on, so does what was best on each of them left out.

Draws stand back likewise. To each is added an offset of every gene, the same all over the slide:
the mean of a gene in another patient is not in the image. Its size is that between the training
patients; of one patient, a sixfold change of counts, of which log1p shows less where they are low.
As little is known of that size, offsets are of Student's distribution.

All of it is [ours]; where the constants come from is in docs/methods.md.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.slide import Slide
from stfm_jax.models import regression
from stfm_jax.models.method import Blocks, Prediction, Request, Standing, gathered, whole
from stfm_jax.models.regression import RegressionSettings, Seen
from stfm_jax.regression import distance, regressors, targets
from stfm_jax.regression.features import (
    FeatureTransform,
    columns_of,
    moments,
    own_features,
    window_mean,
)
from stfm_jax.regression.regressors import Choice, Linear

PENALTY = 6.0  # of the ridge, for each training spot
EXPLAINED = 0.9  # of the fit's variance: so many axes are kept
WINDOW = 9  # spots that half of the prediction is averaged over, itself counted
OFFSET = np.log(6.0)  # of counts, where one patient was trained on
FREEDOM = 3.0  # degrees of it that such an offset has
PATIENTS = 4.0  # that all genes together count for in the size of one gene's offset

_LOG = logging.getLogger("stfm_jax")


class Part(NamedTuple):
    """One encoder's."""

    far: Linear  # of own principal components, to expression
    reference: distance.Reference
    look: distance.Look


class Strangers(NamedTuple):
    """What was fitted for strangers."""

    of: dict[str, Part]  # by number of the encoder, from "0"
    share: np.ndarray  # [] of the flexible fit in slides of other patients, however near
    residual: np.ndarray  # [g, g] covariance of what the far fit leaves within slides left out
    offset: np.ndarray  # [g] size of the offset of another patient's slide
    freedom: np.ndarray  # [] of Student's distribution, which offsets are of


def fit(
    slides: Sequence[Slide],
    seen: Seen,
    kinds: Sequence[str],
    once: regression.Once = regression.compute,
) -> Strangers:
    """The fit for strangers, and what is usual.

    Args:
      slides: trained on.
      seen: of them, neighbourhoods too.
      kinds: of the regressors whose mean stands for the flexible fit.
      once: see `models.method.Run.once`.
    """

    def make() -> Strangers:
        in_units, scale = regression.scaled(seen)
        x, z = in_units.pooled
        unseen = _unseen_far(slides, in_units)
        left = _of_slides((z - unseen) * scale.std, slides)
        residual = np.concatenate(targets.within_slides(left))
        patients = [slide.patient or slide.name for slide in slides]
        if len(set(patients)) > 1:
            share = _learned_share(slides, in_units, unseen, kinds, once)
            offset = offset_between(seen.y, patients, scale.std)
            freedom = len(set(patients)) - 1 + PATIENTS
        else:
            share, freedom = 1.0, FREEDOM
            offset = OFFSET * -np.expm1(-np.concatenate(seen.y).mean(axis=0))
        looks = _looks(slides, seen)
        parts = {
            i: Part(
                targets.regressor_back(_shrunk(x[:, columns[:own]], z), scale),
                _reference(slides, x[:, columns], own, seen.groups),
                looks[i],
            )
            for i, columns, own in _encoders(seen.transform, x.shape[1])
        }
        covariance = targets.residual_covariance(residual)
        arrays = (np.asarray(a, np.float32) for a in (share, covariance, offset, freedom))
        return Strangers(parts, *arrays)

    return once(make, slides, "strangers", tuple(kinds), seen.key)


def offset_between(
    y: Sequence[np.ndarray], patients: Sequence[str], within: np.ndarray
) -> np.ndarray:
    """How far the mean of a patient's slide lies from that of the others' slides.

    Args:
      y: per slide [n_i, g].
      patients: of each slide; two or more.
      within: [g] standard deviation within slides.

    Returns:
      [g] root mean square over the slides; all genes together, in units of `within`, count as
      PATIENTS further patients.
    """
    means, of = np.stack([part.mean(axis=0) for part in y]), np.array(patients)
    between = [
        np.mean((means[of == name] - means[of != name].mean(axis=0)) ** 2, axis=0)
        for name in sorted(set(patients))
    ]
    number, within = len(between), np.maximum(within, 1e-6)
    pooled = np.mean(np.mean(between, axis=0) / within**2) * within**2
    return np.sqrt((np.sum(between, axis=0) + PATIENTS * pooled) / (number + PATIENTS))


def standing(
    strangers: Strangers,
    settings: RegressionSettings,
    transform: FeatureTransform,
    slide: Slide,
    familiar: bool,
) -> Standing:
    """How a slide stands to those that were trained on; the log says so.

    Args:
      strangers: fitted.
      settings: what is seen.
      transform: of the features.
      slide: with features.
      familiar: whether other slides of its patient were trained on.
    """
    spots = distance.sampled(slide.num_spots)
    x = regression.context_of(settings, transform, slide)(spots)
    coords, n = slide.coords_um[spots], len(spots)
    most = 1.0 if familiar else float(strangers.share)
    found, shares, mean = [], [], moments([slide.features])[0]
    for i, columns, _ in _encoders(transform, x.shape[1]):
        reference = strangers.of[i].reference
        ratio = distance.ratio(reference, x[:, columns], coords)
        limits = [distance.usual(reference, q, n) for q in (distance.NEAR, distance.FAR)]
        found.append((ratio / limits[1], ratio, *limits))
        found.append(_of_look(strangers.of[i].look, mean, transform, i))
        shares.append(most * distance.nearness(reference, ratio, n))
    _, ratio, usual, stranger = max(found)
    of_spots = functools.partial(_of_spots, strangers, settings, transform, slide)
    made = Standing(tuple(shares), ratio, usual, stranger, familiar, of_spots)
    _tell(slide.where, made)
    return made


def far_mean(
    strangers: Strangers, transform: FeatureTransform, slide: Slide, weights: Sequence[float]
) -> np.ndarray:
    """Expression [n, g] by the fits for strangers, averaged with a weight for each encoder."""
    own = own_features(transform, slide.features)
    encoders = zip(weights, _encoders(transform, own.shape[1]), strict=True)
    total = sum(
        weight * regressors.predict(strangers.of[i].far, own[:, columns])
        for weight, (i, columns, _) in encoders
        if weight
    )
    rough = (total / np.float32(sum(weights))).astype(np.float32)
    return _half_smoothed(rough, slide.coords_um)


def stood_back(
    strangers: Strangers,
    standing: Standing,
    transform: FeatureTransform,
    slide: Slide,
    flow: Callable[[], Prediction],
    request: Request,
) -> Prediction:
    """What a flow predicts of a slide that may be a stranger's.

    The mean is the flow's and that of the fit for strangers, by their shares. Deviations of a draw
    from it are those of a draw of the flow and Gaussian ones with the residuals' covariance, by the
    roots of the shares, so that variances are averaged; and the offset.

    Args:
      strangers: fitted.
      standing: of the slide.
      transform: of the features.
      slide: with features.
      flow: () -> its prediction, not clipped at 0; not asked for where it has no share.
      request: for seed and number of draws.
    """
    share, n = standing.share, slide.num_spots
    g = len(strangers.offset)
    own = flow() if share > 0.0 else None
    mean = centre = np.zeros((n, g), np.float32) if own is None else gathered(own.mean, n)
    if share < 1.0:
        away = [1.0 - each for each in standing.shares]
        mean = share * centre + (1.0 - share) * far_mean(strangers, transform, slide, away)
    root = np.sqrt(1.0 - share) * np.linalg.cholesky(strangers.residual).T
    offset = 0.0 if standing.familiar else strangers.offset

    def draws() -> Iterator[Blocks]:
        of_flow = iter(() if own is None else own.draws)
        for i in range(request.draws):
            rng = np.random.default_rng((request.seed, i))
            draw = mean + offset * rng.standard_t(strangers.freedom, size=g)
            if own is not None:
                draw += np.sqrt(share) * (gathered(next(of_flow), n) - centre)
            if share < 1.0:
                draw += rng.normal(size=(n, g)) @ root
            yield whole(np.maximum(draw, 0.0).astype(np.float32))

    return Prediction(whole(np.maximum(mean, 0.0)), draws(), standing)


def _of_spots(
    strangers: Strangers, settings: RegressionSettings, transform: FeatureTransform, slide: Slide
) -> np.ndarray:
    """How far each spot is [n], over the median spot of a left-out unit; of several encoders the
    largest."""
    out = np.empty(slide.num_spots, np.float32)
    for spots, x in regression.feature_blocks(settings, transform, slide, True):
        found = [
            distance.of_spots(strangers.of[i].reference, x[:, columns])
            for i, columns, _ in _encoders(transform, x.shape[1])
        ]
        out[spots] = np.max(found, axis=0)
    return out


def _encoders(
    transform: FeatureTransform, num_features: int
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Number of each encoder, its columns of the features, and how many of these are a spot's own,
    which come first."""
    columns = columns_of(transform, num_features) or [np.arange(num_features)]
    axes = [transform.components.shape[1]] if transform.axes is None else transform.axes
    for i, (of, own) in enumerate(zip(columns, axes, strict=True)):
        yield str(i), of, int(own)


def _reference(
    slides: Sequence[Slide], x: np.ndarray, own: int, groups: np.ndarray
) -> distance.Reference:
    """What is usual among the slides; among blocks of an only one, which are its groups."""
    alone = len(slides) == 1
    section = np.repeat(np.arange(len(slides)), [slide.num_spots for slide in slides])
    coords = np.concatenate([slide.coords_um for slide in slides])
    return distance.fit(x, own, coords, groups if alone else section, groups, blocks=alone)


def _raw(transform: FeatureTransform) -> dict[str, slice]:
    """Which of the features as they come each encoder made."""
    widths = [len(transform.mean)] if transform.widths is None else transform.widths
    ends = np.cumsum(widths)
    return {
        str(i): slice(end - n, end) for i, (end, n) in enumerate(zip(ends, widths, strict=True))
    }


def _looks(slides: Sequence[Slide], seen: Seen) -> dict[str, distance.Look]:
    """What is usual of the means of features, by encoder."""
    groups = np.unique(seen.groups)
    if len(slides) == 1:
        features = slides[0].features
        units = [feature_store.take(features, np.flatnonzero(seen.groups == g)) for g in groups]
    else:
        units = [slide.features for slide in slides]
        groups = np.array([part[0] for part in _of_slides(seen.groups, slides)])
    means, sizes = np.stack([moments([unit])[0] for unit in units]), np.array([*map(len, units)])
    return {
        i: distance.fit_look(means[:, part], sizes, groups, seen.transform.std[part])
        for i, part in _raw(seen.transform).items()
    }


def _of_look(look: distance.Look, mean: np.ndarray, transform: FeatureTransform, i: str) -> tuple:
    """Alarm, ratio and limits."""
    part = _raw(transform)[i]
    ratio = distance.look_ratio(look, mean[part], transform.mean[part], transform.std[part])
    limits = [distance.look_usual(look, q) for q in (distance.NEAR, distance.FAR)]
    return ratio / limits[1], ratio, *limits


def _shrunk(own: np.ndarray, z: np.ndarray) -> Linear:
    """The fit for strangers of own components [n, p] to scaled targets [n, g]."""
    ridge = regressors.fit("ridge", own, z, Choice(PENALTY * len(own), np.nan, np.nan))
    axes = targets.leading_axes(regressors.predict(ridge, own), EXPLAINED)
    return targets.reduced(ridge, axes)


def _half_smoothed(rough: np.ndarray, coords: np.ndarray) -> np.ndarray:
    return (rough + window_mean(rough, coords, WINDOW)) / 2


def _learned_share(
    slides: Sequence[Slide],
    seen: Seen,
    far: np.ndarray,
    kinds: Sequence[str],
    once: regression.Once,
) -> float:
    """Share of the flexible fit that has the least squared error on patients left out."""
    fits = {kind: regression.fitted(kind, slides, seen, once) for kind in kinds}
    unseen = [regression.unseen(kind, slides, seen, found, once) for kind, found in fits.items()]
    near = np.mean(unseen, axis=0)
    _, z = seen.pooled
    towards = far - near
    moved = np.sum((z - near) * towards) / max(np.sum(towards**2), 1e-12)
    return float(np.clip(1.0 - moved, 0.0, 1.0))


def _unseen_far(slides: Sequence[Slide], seen: Seen) -> np.ndarray:
    """What the fit for strangers says of the training spots [n, g], their groups left out."""
    x, z = seen.pooled
    out = np.zeros_like(z)
    encoders = list(_encoders(seen.transform, x.shape[1]))
    for _, columns, own in encoders:
        of_spot = x[:, columns[:own]]
        for group in np.unique(seen.groups):
            left = seen.groups == group
            fitted = _shrunk(of_spot[~left], z[~left])
            out[left] += regressors.predict(fitted, of_spot[left]) / len(encoders)
    each = zip(_of_slides(out, slides), slides, strict=True)
    return np.concatenate([_half_smoothed(part, slide.coords_um) for part, slide in each])


def _of_slides(values: np.ndarray, slides: Sequence[Slide]) -> list[np.ndarray]:
    """Rows [n, g] of all spots, cut into those of each slide."""
    return np.split(values, np.cumsum([slide.num_spots for slide in slides])[:-1])


def _tell(where: str, found: Standing) -> None:
    said = (
        f"{where}: is {found.ratio:.2f} times as far from the training slides as these are from "
        f"one another (usual: up to {found.usual:.2f}; a stranger: from {found.stranger:.2f} on)"
    )
    if found.is_stranger:
        _LOG.warning(
            "%s; little of what was learnt may hold there: %d %% of its mean is of the fit for "
            "strangers",
            said, round(100 * (1 - found.share)),
        )  # fmt: skip
    else:
        _LOG.info("%s", said)
