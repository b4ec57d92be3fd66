"""STFlow: the joint expression of a slide's spots by flow matching (arXiv 2506.05361).

Published parts and our own are told apart in METHODS.md; the network is `nn.stflow_net`, path,
priors and solvers are in `flow`. This module puts them together as a Task.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.covariance import LedoitWolf

from stfm_jax.data.batching import TILE, Batch, PreparedSlide, spacing_units
from stfm_jax.data.expression import expression, gene_counts, library_size
from stfm_jax.data.rows import spans
from stfm_jax.data.slide import Slide
from stfm_jax.flow import gaussian, priors
from stfm_jax.flow.path import angular_times, interpolate, uniform_times
from stfm_jax.flow.solvers import euler
from stfm_jax.nn.stflow_net import ImageTower, STFlowNet
from stfm_jax.ops import zinb
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

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
    anchor_choice: regressors.Choice | None
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

    name = "stflow"
    base = None  # a method that is trained before this one, which stands on it
    selected_by = "pearson"  # of the mean on the validation slide; or "loss"
    in_chunks = True  # whether a large slide can be predicted chunk by chunk (eval.whole_slide)

    @property
    def gaussian_skip(self) -> bool:
        """The published form sees differences only and has no skip."""
        return self.network.expression == "token"

    # Closed-form part, on the host.

    def fit(self, slides: Sequence[Slide], genes: Sequence[str]) -> TrainingSet:
        """Scalers, prior, anchor and path of the training slides."""
        transform = feature_ops.fit_transform(
            [s.features for s in slides], self.standardize, self.components
        )
        context = [self._context(s, transform) for s in slides]
        expr = [expression(s, genes, self.normalization) for s in slides]
        sizes = [s.num_spots for s in slides]
        x, y = np.concatenate(context), np.concatenate(expr)
        anchor, oof, choice = self._fit_anchor(x, y, sizes, [s.coords_um for s in slides])
        prior = self._fit_prior(slides, genes, y)
        residuals = y - oof
        path = gaussian.gaussian_path(
            prior.mean,
            prior.covariance,
            LedoitWolf(assume_centered=True).fit(residuals.astype(np.float64)).covariance_,
        )
        bounds = np.cumsum(sizes)[:-1]
        prepared = [
            self._prepared(slide, transform, c, a, e)
            for slide, c, a, e in zip(slides, context, np.split(oof, bounds), expr, strict=True)
        ]
        flow = FlowArrays(prior, path, y.mean(axis=0), np.maximum(y.std(axis=0), 1e-3))
        return TrainingSet(prepared, Fitted(transform, anchor, flow), choice, residuals)

    def _fit_anchor(self, x, y, sizes, coords):
        if self.anchor == "none":
            mean = y.mean(axis=0) if self.gaussian_skip else np.zeros(y.shape[1])
            regressor = regressors.constant(mean, x.shape[1])
            return regressor, np.broadcast_to(regressor.bias, y.shape), None
        groups = regressors.leave_out_groups(sizes, coords)
        choice = regressors.choose(self.anchor, x, y, groups)
        oof = regressors.out_of_fold(self.anchor, x, y, groups, choice)
        return regressors.fit(self.anchor, x, y, choice), oof, choice

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
        context = self._context(slide, fitted.transform)
        anchor = regressors.predict(fitted.anchor, context)
        expr = None if genes is None else expression(slide, genes, self.normalization)
        return self._prepared(slide, fitted.transform, context, anchor, expr)

    def prepare_blocks(
        self, slide: Slide, fitted: Fitted
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """As `prepare` of a slide to predict, but some spots [m] at a time.

        Yields spots, features [m, f] and anchor [m, g] until every spot was there; what is held of
        the slide are its principal components [n, p].
        """
        context = feature_ops.context_reader(
            fitted.transform, slide.features, slide.coords_um, self.context
        )
        if self.token_context:
            blocks = ((spots, None) for spots in spans(slide.num_spots))
        else:
            blocks = feature_ops.standardized_blocks(fitted.transform, slide.features)
        for spots, own in blocks:
            around = context(spots)
            anchor = regressors.predict(fitted.anchor, around)
            yield spots, around if own is None else own, anchor

    def _context(self, slide: Slide, transform) -> np.ndarray:
        return feature_ops.context_features(
            transform, slide.features, slide.coords_um, self.context
        )

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

    def restored(self, tree: dict) -> Fitted:
        """What was fitted, from the nested dict of arrays it was saved as.

        Raises:
          KeyError, TypeError: saved by another version.
        """
        anchor = tree["anchor"]
        return Fitted(
            transform=feature_ops.FeatureTransform(**tree["transform"]),
            anchor=(regressors.Kernel if "landmarks" in anchor else regressors.Linear)(**anchor),
            flow=flow_arrays(tree["flow"]),
        )

    def input_width(self, fitted: Fitted) -> int:
        """Features of a spot that the network sees."""
        own, components = fitted.transform.components.shape
        return components * (1 + len(self.context)) if self.token_context else own

    def init(self, key: jax.Array, arrays: FlowArrays, num_features: int) -> dict:
        """Network parameters."""
        params = {"flow": self.network.init(key, num_features)}
        if self.image is not None:
            example = jnp.zeros((1, num_features))
            params["image"] = self.image.init(jax.random.fold_in(key, 1), example)
        return params

    def loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sum over spots and genes of the squared errors, and the number of terms.

        The flow's error is that of x_1_hat, at t ~ U(0, 1) per slide [STFlow]. Weight "data" is
        the published plain error; "velocity" divides by the Gaussian posterior variance, so that
        all times count alike [ours]. The image tower's error, in standard deviations of the gene,
        is added; the two share no parameters.
        """
        _, error = self._errors(params, arrays, batch, key)
        return masked_sum(error, batch.spot_mask)

    def validation_loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `loss`, without the network's noise."""
        _, error = self._errors(params, arrays, batch, key, noisy=False)
        return masked_sum(error, batch.spot_mask)

    def _errors(
        self, params, arrays, batch: Batch, key, noisy: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """x_1_hat at a random time, and the terms of the loss; each [N, g]."""
        key_t, key_0, key_noise = jax.random.split(key, 3)
        per_slide = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_t, batch.slide)
        t = jax.vmap(jax.random.uniform)(per_slide)[:, None]
        path, anchor = self.path(arrays, batch), self.anchor_of(arrays, batch)
        x_t = interpolate(self.draw_prior(arrays, batch, key_0), batch.expr, t)
        noise = priors.spot_keys(key_noise, batch.slide, batch.place) if noisy else None
        network = self.evaluator(params, arrays, batch, noise)
        if self.gaussian_skip:
            z = gaussian.whiten(path, x_t, anchor, t)
            x_1_hat = gaussian.posterior(path, z, network(z, t), anchor, t)
        else:
            x_1_hat = anchor + network(x_t, t)
        error = self._time_weight(path, t) * (x_1_hat - batch.expr) ** 2
        if self.image is not None:
            target = (batch.expr - arrays.gene_mean) / arrays.gene_std
            error = error + (self.image_says(params, arrays, batch, noise) - target) ** 2
        return x_1_hat, error

    # What a draw is made of. Methods for stacks (models.holotea) add to each.

    def path(self, arrays: FlowArrays, batch: Batch) -> gaussian.GaussianPath:
        """Moments of prior and residual."""
        return arrays.path

    def anchor_of(self, arrays: FlowArrays, batch: Batch) -> jax.Array:
        """The regression the model stands on, [N, g]."""
        return batch.anchor

    def draw_prior(self, arrays: FlowArrays, batch: Batch, key: jax.Array) -> jax.Array:
        """x_0 [N, g]."""
        return priors.sample(arrays.prior, priors.spot_keys(key, batch.slide, batch.place))

    def image_says(
        self, params: dict, arrays: FlowArrays, batch: Batch, noise: jax.Array | None = None
    ) -> jax.Array:
        """The image tower's expression [N, g], in standard deviations about the genes' means."""
        return self.image.apply(params["image"], batch.features, noise)

    def evaluator(
        self, params: dict, arrays: FlowArrays, batch: Batch, noise: jax.Array | None = None
    ):
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

    def centre(self, params: dict, arrays: FlowArrays, batch: Batch) -> jax.Array:
        """`mean` of a batch."""
        said = None if self.image is None else self.image_says(params, arrays, batch)
        return self.mean(arrays, self.anchor_of(arrays, batch), said)

    @functools.partial(jax.jit, static_argnames=("self", "draws"))
    def posterior_mean(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """E[x_1 | features] [N, g]: x_1_hat at t = 0, averaged over prior draws.

        With an image tower the gate is closed at t = 0, and x_1_hat is `mean` whatever the draw.
        """
        mean = self.centre(params, arrays, batch)
        if self.mean_is_closed:
            return self.supported(mean)
        network, path = self.evaluator(params, arrays, batch), self.path(arrays, batch)

        def one(key):
            return self.first_estimate(network, path, self.draw_prior(arrays, batch, key), mean)

        return self.supported(jnp.mean(jax.lax.map(one, draw_keys(key, draws)), axis=0))

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

    @functools.partial(jax.jit, static_argnames=("self", "draws"))
    def sample(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """Joint draws of x_1 given the features, [draws, N, g]."""
        network, path = self.evaluator(params, arrays, batch), self.path(arrays, batch)
        mean = self.centre(params, arrays, batch)

        def one(key):
            return self.draw(network, path, self.draw_prior(arrays, batch, key), mean)

        return jax.lax.map(one, draw_keys(key, draws))

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

    def _time_weight(self, path: gaussian.GaussianPath, t: jax.Array) -> jax.Array | float:
        if self.loss_weight == "data" or not self.gaussian_skip:
            return 1.0
        now = gaussian.posterior_variance(path, t)
        start = gaussian.posterior_variance(path, jnp.zeros((1, 1)))
        return 1.0 / (now / start + 1e-3)  # bounded as t -> 1

    def supported(self, x: jax.Array) -> jax.Array:
        """Predictions within the range of log-expression."""
        return jnp.maximum(x, 0.0) if self.clip else x


def flow_arrays(tree: dict) -> FlowArrays:
    """From the nested dict of arrays they were saved as."""
    prior, path = priors.Prior(**tree["prior"]), gaussian.GaussianPath(**tree["path"])
    return FlowArrays(prior, path, tree["gene_mean"], tree["gene_std"])


def masked_sum(error: jax.Array, spot_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of error [N, g] over unmasked spots [N], and the number of terms."""
    mask = spot_mask[:, None]
    return jnp.sum(jnp.where(mask, error, 0.0)), jnp.sum(mask) * error.shape[1]


def draw_keys(key: jax.Array, draws: int) -> jax.Array:
    """Draw i has the same key however many are taken."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(draws))
