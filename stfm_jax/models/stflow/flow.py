"""STFlow: the joint expression of a slide's spots by flow matching (arXiv 2506.05361).

Published parts and our own are told apart in docs/methods.md; the network is `nn.stflow_net`, path,
priors and solvers are in `flow`, draws are put together in `joint`. Here are the settings, what is
estimated in closed form, and the functions of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.batching import TILE, Batch, PreparedSlide, spacing_units
from stfm_jax.data.expression import expression, gene_counts, library_size
from stfm_jax.data.feature_store import spans
from stfm_jax.data.slide import Slide
from stfm_jax.flow import gaussian, priors
from stfm_jax.flow.path import angular_times, uniform_times
from stfm_jax.flow.solvers import euler
from stfm_jax.models import regression
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.models.stflow import joint
from stfm_jax.models.stflow.joint import Parts
from stfm_jax.nn.stflow_net import ImageTower, STFlowNet
from stfm_jax.ops import zinb
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors, targets

ANCHORS = ("none", "ridge", "kernel")


class FlowArrays(NamedTuple):
    """The part of Fitted that the jitted functions see."""

    prior: priors.Prior
    path: gaussian.GaussianPath
    gene_mean: np.ndarray  # [g] of the training spots
    gene_std: np.ndarray  # [g]


class Fitted(NamedTuple):
    """What is estimated in closed form on the training slides; a pytree of arrays."""

    transform: feature_ops.FeatureTransform
    anchor: regressors.Regressor
    flow: FlowArrays


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Training slides with anchors fitted out of fold, and what was fitted on them."""

    slides: list[PreparedSlide]
    fitted: Fitted
    anchor_choice: regressors.Choice | regressors.Choices | None
    residuals: np.ndarray  # [n, g] out-of-fold residuals of all training spots


@dataclasses.dataclass(frozen=True)
class STFlow:
    """The method with its settings; hashable, so it is a static argument of jitted functions."""

    network: STFlowNet
    image: ImageTower | None = None  # with an anchor: what the mean takes from the image directly
    image_weight: float = 0.5  # of the tower in the mean; the anchor has the rest
    normalization: str = "log1p"
    standardize: str = "slide"
    components: int = 256  # principal axes of the features, for anchor and context
    context: tuple[int, ...] = (9, 25, 60)  # neighbourhoods whose mean features are seen
    token_context: bool = True  # whether tokens see them too, or own features only (published)
    anchor: str = "kernel"
    prior: str = "zinb_fit"
    neighbors: int = 8
    tile: int = TILE  # spots of a tile
    edge_cache: int = 1 << 30  # bytes; edge features are kept in so much, or computed every time
    loss_weight: str = "velocity"
    evaluations: int = 5
    clip: bool = True  # predictions are never below 0, as log-expression is

    @property
    def seen(self) -> RegressionSettings:
        """What the anchor sees."""
        return RegressionSettings(
            self.components, self.context, self.standardize, self.normalization
        )

    @property
    def gaussian_skip(self) -> bool:
        """The published form sees differences only and has no skip."""
        return self.network.expression == "token"

    # Closed-form part, on the host.

    def training_set(
        self,
        slides: Sequence[Slide],
        genes: Sequence[str],
        seed: int = 0,
        once: regression.Once = regression.compute,
    ) -> TrainingSet:
        """Scalers, prior, anchor and path of the training slides.

        Args:
          slides: with counts.
          genes: to predict.
          seed: of every draw, split and fit.
          once: see `train.stages.Run.once`.
        """
        seen = regression.seen_of(self.seen, slides, genes, True, seed, once)
        y = np.concatenate(seen.y)
        anchor, unseen, choice = self._fit_anchor(slides, seen, y, once)
        prior = self._fit_prior(slides, genes, y)
        residuals = y - unseen
        bounds = np.cumsum([len(part) for part in seen.y])[:-1]
        left = residuals
        if seen.by_patient:  # the offset of another patient's slide is drawn apart
            left = np.concatenate(targets.within_slides(np.split(residuals, bounds)))
            unseen = y - left
        covariance = targets.residual_covariance(left)
        path = gaussian.gaussian_path(prior.mean, prior.covariance, covariance)
        prepared = [
            self._prepared(slide, seen.transform, x, a, e)
            for slide, x, a, e in zip(slides, seen.x, np.split(unseen, bounds), seen.y, strict=True)
        ]
        flow = FlowArrays(prior, path, y.mean(axis=0), np.maximum(y.std(axis=0), 1e-3))
        return TrainingSet(prepared, Fitted(seen.transform, anchor, flow), choice, residuals)

    def _fit_anchor(self, slides, seen: regression.Seen, y, once):
        """Regressor, its prediction [n, g] of each training spot that it did not see, choice."""
        if self.anchor == "none":
            mean = y.mean(axis=0) if self.gaussian_skip else np.zeros(y.shape[1])
            regressor = regressors.constant(mean, seen.x[0].shape[1])
            return regressor, np.broadcast_to(regressor.bias, y.shape), None
        fit = regression.fitted(self.anchor, slides, seen, once)
        return fit.regressor, regression.unseen(self.anchor, slides, seen, fit, once), fit.choice

    def _fit_prior(self, slides, genes, y) -> priors.Prior:
        cp10k = self.normalization == "log1p_cp10k"
        library = np.concatenate([library_size(s) for s in slides]) if cp10k else None
        if self.prior == "gaussian":
            return priors.gaussian_prior(y.mean(axis=0), y.std(axis=0))
        if self.prior == "zero":
            return priors.gaussian_prior(np.zeros(y.shape[1]), np.zeros(y.shape[1]))
        if self.prior == "zinb_scalar":
            return priors.zinb_scalar_prior(y.shape[1], library)
        fit = zinb.fit(np.concatenate([gene_counts(s, genes) for s in slides]))
        return priors.zinb_prior(fit.mu, fit.theta, fit.pi_logits, library)

    def prepare(
        self, slide: Slide, fitted: Fitted, genes: Sequence[str] | None = None
    ) -> PreparedSlide:
        """A slide to predict, or with `genes` to score; done once per slide."""
        context = self.context_of(slide, fitted.transform)
        anchor = regressors.predict(fitted.anchor, context)
        expr = None if genes is None else expression(slide, genes, self.normalization)
        return self._prepared(slide, fitted.transform, context, anchor, expr)

    def prepare_blocks(
        self, slide: Slide, fitted: Fitted
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """What `prepare` gives of a slide to predict, some spots [m] at a time.

        Yields spots, features [m, f] and anchor [m, g] until every spot was there; what is held of
        the slide are its principal components [n, p].
        """
        context = regression.context_of(self.seen, fitted.transform, slide)
        if self.token_context:
            blocks = ((spots, None) for spots in spans(slide.num_spots))
        else:
            blocks = feature_ops.standardized_blocks(fitted.transform, slide.features)
        for spots, own in blocks:
            around = context(spots)
            anchor = regressors.predict(fitted.anchor, around)
            yield spots, around if own is None else own, anchor

    def context_of(self, slide: Slide, transform) -> np.ndarray:
        """Own and neighbourhood features [n, f] of a slide."""
        return regression.features_of(self.seen, transform, slide, True)

    def _prepared(self, slide, transform, context, anchor, expr) -> PreparedSlide:
        own = feature_ops.standardized_features(transform, slide.features)
        return PreparedSlide(
            name=slide.name,
            coords=spacing_units(slide.coords_um),
            features=context if self.token_context else own,
            anchor=anchor,
            expr=expr,
            place=np.arange(slide.num_spots, dtype=np.int32),
        )

    # Trained part, jitted.

    def input_width(self, fitted: Fitted) -> int:
        """Features of a spot that the network sees."""
        own, components = fitted.transform.components.shape
        return components * (1 + len(self.context)) if self.token_context else own

    def init(self, key: jax.Array, arrays: FlowArrays, num_features: int) -> dict:
        """Network parameters."""
        params = {"flow": self.network.init(key, num_features)}
        return params if self.image is None else params | self.init_image(key, num_features)

    def init_image(self, key: jax.Array, num_features: int) -> dict:
        """The image tower's part of `init`."""
        example = jnp.zeros((1, num_features))
        return {"image": self.image.init(jax.random.fold_in(key, 1), example)}

    def loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sum over spots and genes of the squared errors, and the number of terms.

        The flow's error is that of x_1_hat, at t ~ U(0, 1) per slide [STFlow]. Weight "data" is
        the published plain error; "velocity" divides by the Gaussian posterior variance, so that
        all times count alike [ours]. The image tower's error, in standard deviations of the gene,
        is added; the two share no parameters.
        """
        parts = self.parts(params, arrays, batch, joint.noise_keys(key, batch))
        _, error = joint.errors(self, parts, arrays, batch, key)
        return joint.masked_sum(error, batch.spot_mask)

    def validation_loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`loss` without the network's noise."""
        parts = self.parts(params, arrays, batch)
        _, error = joint.errors(self, parts, arrays, batch, key)
        return joint.masked_sum(error, batch.spot_mask)

    def parts(
        self, params: dict, arrays: FlowArrays, batch: Batch, noise: jax.Array | None = None
    ) -> Parts:
        """What draws of a batch are made of; with noise as in training."""
        said = None if self.image is None else self.image_says(params, batch, noise)
        return Parts(
            path=arrays.path,
            anchor=batch.anchor,
            said=said,
            centre=self.mean(arrays, batch.anchor, said),
            network=functools.partial(self.evaluator, params, batch, noise),
            prior=lambda key: draw_prior(arrays, batch, key),
        )

    def image_says(self, params: dict, batch: Batch, noise: jax.Array | None = None) -> jax.Array:
        """The image tower's expression [N, g], in standard deviations about the genes' means."""
        return self.image.apply(params["image"], batch.features, noise)

    def evaluator(self, params: dict, batch: Batch, noise: jax.Array | None = None):
        """(state [N, g], t, a scalar or [N, 1]) -> network output [N, g].

        Without the noise of training, what depends on the slide alone is computed here, once:
        tokens, and the edges' features where they fit.
        """
        network, params = self.network, params["flow"]
        tokens = network.encode_features(params, batch.features, noise)
        features = self.kept_edges(params, batch) if noise is None else None

        def evaluate(x, t):
            time = jnp.squeeze(t, axis=-1) if jnp.ndim(t) else t
            return self.gate(t) * network.denoise(
                params, x, time, tokens, batch.tiles, features, noise
            )

        return evaluate

    def kept_edges(self, flow_params: dict, batch: Batch):
        """The edges' features in every block, None where they take more than `edge_cache`."""
        kept = self.network.edge_bytes(batch.tiles.senders.size) <= self.edge_cache
        return self.network.encode_edges(flow_params, batch.tiles) if kept else None

    def mean(self, arrays: FlowArrays, anchor: jax.Array, said: jax.Array | None) -> jax.Array:
        """What draws are centred on [N, g]: the anchor, averaged with the image tower if any.

        Args:
          arrays: fitted.
          anchor: [N, g].
          said: of `image_says`, None without a tower.
        """
        if said is None:
            return jnp.asarray(anchor)
        said = arrays.gene_mean + arrays.gene_std * said
        return (1.0 - self.image_weight) * anchor + self.image_weight * said

    @functools.partial(jax.jit, static_argnames=("self", "draws"))
    def posterior_mean(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """E[x_1 | features] [N, g]; see `joint.posterior_mean`."""
        return joint.posterior_mean(self, self.parts(params, arrays, batch), key, draws)

    @functools.partial(jax.jit, static_argnames=("self", "draws"))
    def sample(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """Joint draws of x_1 given the features, [draws, N, g]."""
        return joint.sample(self, self.parts(params, arrays, batch), key, draws)

    @property
    def mean_is_closed(self) -> bool:
        """With an image tower the gate is shut at t = 0: `mean` is the posterior mean."""
        return self.image is not None

    def first_estimate(self, network, path: gaussian.GaussianPath, x_0, mean) -> jax.Array:
        """x_1_hat [N, g] at t = 0 of a prior draw; arguments as in `draw`."""
        start = jnp.float32(0.0)
        if not self.gaussian_skip:
            return mean + network(x_0, start)
        z = gaussian.whiten(path, x_0, mean, start)
        return gaussian.posterior(path, z, network(z, start), mean, start)

    def draw(self, network, path: gaussian.GaussianPath, x_0, mean, scan=jax.lax.scan) -> jax.Array:
        """x_1 [N, g] from a prior draw x_0 [N, g].

        Args:
          network: (state [N, g], t) -> output [N, g].
          path: moments.
          x_0: prior draw.
          mean: [N, g] what draws are centred on.
          scan: see flow.solvers.
        """
        if self.gaussian_skip:
            times = angular_times(self.evaluations)
            x = gaussian.exponential_euler(network, path, x_0, mean, times, scan)
        else:
            times = uniform_times(self.evaluations)
            x = euler(lambda x, t: mean + network(x, t), x_0, times, scan)
        return self.supported(x)

    def gate(self, t: jax.Array) -> jax.Array | float:
        """0 at t = 0, where the state knows nothing and the mean is the image's alone, to 1."""
        if self.image is None:
            return 1.0
        return t / jnp.sqrt((1.0 - t) ** 2 + t**2)

    def time_weight(self, path: gaussian.GaussianPath, t: jax.Array) -> jax.Array | float:
        """Weight of the squared error of x_1_hat at times t [N, 1]."""
        if self.loss_weight == "data" or not self.gaussian_skip:
            return 1.0
        now = gaussian.posterior_variance(path, t)
        start = gaussian.posterior_variance(path, jnp.zeros((1, 1)))
        return 1.0 / (now / start + 1e-3)  # bounded as t -> 1

    def supported(self, x: jax.Array) -> jax.Array:
        """Predictions within the range of log-expression."""
        return jnp.maximum(x, 0.0) if self.clip else x


def draw_prior(arrays: FlowArrays, batch: Batch, key: jax.Array) -> jax.Array:
    """x_0 [N, g] of the fitted prior."""
    return priors.sample(arrays.prior, priors.spot_keys(key, batch.slide, batch.place))
