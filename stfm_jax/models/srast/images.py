"""What the children's images say of a split: how deep each child is, and every gene's rate there.

Depth is a regression of the training samples' children on their images. A rate cannot be: the genes
of a sample need not be those of the training samples. It is a regression within the sample, of its
parents' rates on how their children look; but along directions of the images' features with which
expression varies in the training samples, whatever their genes. [ours]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.kernel_approximation import RBFSampler

from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import library_size
from stfm_jax.data.slide import Slide
from stfm_jax.models.srast import latents
from stfm_jax.models.srast.latents import SampleModel
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

AXES = 32  # of looks
CHOSEN_ON, FITTED_TO = 2048, 16_384  # children, at most, of the regression of depth
# Chosen on simulated tissue of other seeds than are reported; broad optima.
_AXES_RIDGE = 0.3  # of the features' mean variance
_WAVES, _GAMMA = 1024, 0.3  # of a Gaussian kernel of looks, which have mean square 1
_RATES_RIDGE = 3.0  # spots' worth of prior on the coefficients


class Images(NamedTuple):
    """Fitted to training samples; arrays only."""

    transform: feature_ops.FeatureTransform
    depth: regressors.Regressor  # of log counts about the slide's mean
    axes: np.ndarray  # [p, AXES] of the features, scaled by how much expression varies along them


@dataclasses.dataclass(frozen=True)
class ImageSays:
    """What images say of a sample's children, or of some of them."""

    depth: np.ndarray  # [n] log of the counts expected
    looks: np.ndarray  # [n, k]
    coefficients: np.ndarray  # [1 + _WAVES, G] of every gene's relative rate
    seed: int  # of the random features

    def of_children(self, index: np.ndarray) -> ImageSays:
        return dataclasses.replace(self, depth=self.depth[index], looks=self.looks[index])

    def rates(self, index: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Rates [m, g] of some children and genes, relative to the genes' means."""
        return latents.rates_at(self.coefficients, _waves(self.looks[index], self.seed), genes)


class ImageReader(NamedTuple):
    """Settings."""

    components: int = 256  # principal axes of the features
    context: tuple[int, ...] = (9, 25, 60)  # neighbourhoods whose mean features tell of depth
    standardize: str = "slide"


def fit(
    reader: ImageReader, pairs: Sequence[Pair], models: Sequence[SampleModel], seed: int = 0
) -> tuple[Images, list[ImageSays]]:
    """Fits what is common to samples, and what it says of each of them when fitted to the others.

    Of a single training sample: depth out of spatial blocks, axes of its own.
    """
    slides = [pair.high for pair in pairs]
    transform = feature_ops.fit_transform(
        [slide.features for slide in slides],
        reader.standardize,
        reader.components,
        seed,
        slides[0].widths,
    )
    depth, depths = _fit_depth(reader, transform, slides, seed)
    slopes = [
        _slopes(_about_mean(transform, slide), latents.scores(model, slide.counts))
        for slide, model in zip(slides, models, strict=True)
    ]
    said = []
    for i, (pair, model) in enumerate(zip(pairs, models, strict=True)):
        others = [slope for j, slope in enumerate(slopes) if j != i] or slopes
        axes = _axes(others)
        said.append(_of_sample(transform, axes, pair, model, depths[i], seed))
    return Images(transform, depth, _axes(slopes)), said


def of_sample(
    reader: ImageReader, images: Images, pair: Pair, model: SampleModel, seed: int = 0
) -> ImageSays:
    """What the images of a new sample's children say; their counts are not looked at."""
    features = _context(reader, images.transform, pair.high)
    depth = regressors.predict(images.depth, features)[:, 0]
    return _of_sample(images.transform, images.axes, pair, model, depth, seed)


def _fit_depth(
    reader: ImageReader, transform, slides: Sequence[Slide], seed: int
) -> tuple[regressors.Regressor, list[np.ndarray]]:
    """The regression, and what it says of each slide out of fold."""
    x = np.concatenate([_context(reader, transform, slide) for slide in slides])
    y = np.concatenate([_log_depth(slide) for slide in slides])
    sizes = [slide.num_spots for slide in slides]
    groups = regressors.leave_out_groups(sizes, [slide.coords_um for slide in slides], seed)
    rng = np.random.default_rng(seed)
    some, every = (_drawn(rng, len(x), most) for most in (CHOSEN_ON, FITTED_TO))
    choice = regressors.choose("kernel", x[some], y[some], groups[some], seed)
    unseen = np.zeros(len(x), np.float32)
    for group in np.unique(groups):
        out, seen = groups == group, every[groups[every] != group]
        regressor = regressors.fit("kernel", x[seen], y[seen], choice, seed)
        unseen[out] = regressors.predict(regressor, x[out])[:, 0]
    depth = regressors.fit("kernel", x[every], y[every], choice, seed)
    return depth, np.split(unseen, np.cumsum(sizes)[:-1])


def _context(reader: ImageReader, transform, slide: Slide) -> np.ndarray:
    return feature_ops.context_features(transform, slide.features, slide.coords_um, reader.context)


def _log_depth(slide: Slide) -> np.ndarray:
    """Log of the spots' counts about the slide's mean, [n, 1]."""
    logs = np.log(library_size(slide))
    return (logs - logs.mean())[:, None].astype(np.float32)


def _drawn(rng: np.random.Generator, n: int, most: int) -> np.ndarray:
    """All rows, or so many, ascending."""
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def _about_mean(transform, slide: Slide) -> np.ndarray:
    """Principal components [n, p] of the patches, about the slide's mean."""
    own = feature_ops.own_features(transform, slide.features)
    return own - own.mean(axis=0)


def _slopes(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Slopes [p, c] of a sample's principal scores on its images' features, by ridge regression."""
    gram = x.T @ x
    gram += _AXES_RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
    return np.linalg.solve(gram, x.T @ (scores - scores.mean(axis=0)))


def _axes(slopes: Sequence[np.ndarray]) -> np.ndarray:
    """What slopes of several samples, each of genes of its own, have in common."""
    vectors, values, _ = np.linalg.svd(np.concatenate(slopes, axis=1), full_matrices=False)
    return (vectors * values)[:, :AXES].astype(np.float32)


def _of_sample(
    transform, axes: np.ndarray, pair: Pair, model: SampleModel, depth: np.ndarray, seed: int
) -> ImageSays:
    looks = _about_mean(transform, pair.high) @ axes
    looks /= max(float(np.sqrt((looks**2).sum(axis=1).mean())), 1e-12)
    spots = latents.some_spots(pair.low.coords_um, seed)
    part = pair.of_parents(spots)
    members = np.isin(pair.parent, spots)
    seen = part.mean_of_children(_waves(looks[members], seed))
    coefficients, *_ = latents.read_rates(
        seen, part.low.counts, library_size(part.low), _RATES_RIDGE
    )
    return ImageSays(depth, looks, coefficients, seed)


def _waves(looks: np.ndarray, seed: int) -> np.ndarray:
    """Random features [n, _WAVES] whose products are a Gaussian kernel of looks [n, k]."""
    sampler = RBFSampler(gamma=_GAMMA, n_components=_WAVES, random_state=seed)
    return sampler.fit(looks[:1]).transform(looks)
