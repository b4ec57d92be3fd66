"""HoloTea: the joint expression of a section, given the other sections of its stack.

STFlow is the base and is trained first; everything here is added to it (arXiv 2511.14613, whose
text gives no formulas that we could read: the forms are [ours], METHODS.md section 2):
- the regression is moved by what neighbouring sections measured (`regression.moved`);
- a ControlNet (`nn.control`) adds to the base's blocks, from nothing at initialisation;
- the prior mixes neighbours' expression with a ZINB of the spot's own (`flow.context_prior`);
- a loss draws predictions toward measured neighbours.
One model serves both regimes: in training the neighbours' expression is hidden half of the time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.covariance import LedoitWolf

from stfm_jax.data import rows
from stfm_jax.data.batching import Batch, PreparedSlide
from stfm_jax.data.context import context_of, narrowed, no_context
from stfm_jax.data.expression import expression, gene_counts, library_size
from stfm_jax.data.retrieval import Placed, Reach
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.flow import context_prior, gaussian, priors
from stfm_jax.flow.context_prior import ContextPrior
from stfm_jax.models import stflow
from stfm_jax.models.stflow import STFlow, masked_sum
from stfm_jax.nn.control import ControlNet
from stfm_jax.ops import zinb
from stfm_jax.ops.context import Context, known_weight, without_expression
from stfm_jax.ops.neighbors import median_spacing
from stfm_jax.ops.tiles import AXIS
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import moved, regressors

PRIORS = ("mix", "base")
BASES = ("frozen", "trained")
_FINGERPRINTED = 64  # spots of a slide, whose features it is known by
_PRIOR_DRAWS = 16  # of a training spot, for the covariance of the prior

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
    def prior(self) -> priors.Prior:
        return self.base.prior

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


@dataclasses.dataclass(frozen=True)
class TrainingSet(stflow.TrainingSet):
    """As STFlow's, whose own is kept for training the base."""

    base: stflow.TrainingSet | None = None


class Neighbours(NamedTuple):
    """The other sections of a slide's stack."""

    slides: Sequence[Slide]  # registered; those with counts are measured
    genes: Sequence[str]
    expression: bool = True  # False: their images alone are seen


@dataclasses.dataclass(frozen=True)
class HoloTea(STFlow):
    """The method with its settings; hashable, so it is a static argument of jitted functions."""

    control: ControlNet | None = None  # None: ablation, regression and prior alone know the stack
    reach: Reach = dataclasses.field(default_factory=Reach)
    context_width: int = 64  # principal components of a retrieved spot that are seen
    trained_base: bool = False  # whether the base goes on training
    see_expression: bool = True  # of measured neighbours
    rho: float = 0.5  # share of the empirical prior
    prior_decay_um: float = 50.0
    context_mix: bool = True  # whether the prior knows the context
    consistency: float = 0.0  # weight of the loss of that name

    name = "holotea"
    in_chunks = False
    selected_by = "loss"  # the mean hardly depends on what is trained under control

    @property
    def base(self) -> STFlow:
        """The 2D method."""
        return STFlow(**{f.name: getattr(self, f.name) for f in dataclasses.fields(STFlow)})

    # Closed-form part, on the host.

    def fit(self, slides: Sequence[Slide], genes: Sequence[str]) -> TrainingSet:
        """As STFlow's, and what the stack adds: contexts, shares of the move, prior, path."""
        base = self.base.fit(slides, genes)
        expr = [p.expr for p in base.slides]
        sizes = np.cumsum([len(y) for y in expr])[:-1]
        residuals = np.split(base.residuals, sizes)
        seen_by = self._residuals_seen(slides, base)
        transform, seen = base.fitted.transform, self.see_expression
        contexts = [
            self._context_of(slide, slides, transform, expr if seen else None, seen_by(i))
            for i, slide in enumerate(slides)
        ]
        prepared = [
            dataclasses.replace(p, context=context)
            for p, context in zip(base.slides, contexts, strict=True)
        ]
        flow = self._flow_arrays(slides, genes, base, prepared, residuals)
        stored = {
            fingerprint(slide): r.astype(np.float32)
            for slide, r in zip(slides, residuals, strict=True)
        }
        fitted = Fitted(base.fitted.transform, base.fitted.anchor, flow, stored)
        return TrainingSet(prepared, fitted, base.anchor_choice, base.residuals, base)

    def _residuals_seen(self, slides, base: stflow.TrainingSet):
        """See `moved.residuals_seen`."""
        x = [
            p.features if self.token_context else self._context(s, base.fitted.transform)
            for p, s in zip(base.slides, slides, strict=True)
        ]
        y, coords = [p.expr for p in base.slides], [s.coords_um for s in slides]
        return moved.residuals_seen(self.anchor, x, y, coords, base.anchor_choice)

    def _context_of(self, slide: Slide, others: Sequence[Slide], transform, expr, residuals):
        """What the spots of a slide see of the others of its stack.

        Args:
          slide: registered.
          others: registered slides; those of other stacks and the slide itself are left out here.
          transform: of the features.
          expr: [n_j, g] of each of the others, None where unknown; None: all unknown.
          residuals: [n_j, g] likewise; not looked at where expression is unknown.
        """
        kept = [j for j, other in enumerate(others) if is_neighbour(other, slide)]
        expr = [None if expr is None else expr[j] for j in kept]
        residuals = [None if y is None else residuals[j] for j, y in zip(kept, expr, strict=True)]
        placed = self.placed([slide, *(others[j] for j in kept)], transform)
        spacing = median_spacing(slide.coords_um)
        sizes = self.context_width, self.network.num_genes
        return context_of(placed, [None, *expr], [None, *residuals], self.reach, spacing, *sizes)

    def placed(self, stack: Sequence[Slide], transform) -> list[Placed]:
        """Registered slides as retrieval takes them."""
        own = [feature_ops.own_features(transform, s.features) for s in stack]
        return [Placed(s.name, _place(s), s.z_um, f) for s, f in zip(stack, own, strict=True)]

    def _no_context(self, n: int) -> Context:
        return no_context(n, self.reach, self.context_width, self.network.num_genes)

    def _flow_arrays(self, slides, genes, base, prepared, residuals) -> FlowArrays:
        flow = base.fitted.flow
        contexts = [p.context for p in prepared]
        mix, mean_0, covariance_0 = None, flow.prior.mean, flow.prior.covariance
        alone_0 = covariance_0
        if self.context_mix:
            mix = self._fit_mix(slides, genes, flow, prepared)
            hidden = [without_expression(c) for c in contexts]
            covariance_0 = self._prior_covariance(mix, flow, prepared, contexts)
            alone_0 = self._prior_covariance(mix, flow, prepared, hidden)
        found = np.concatenate([moved.terms(p.context, p.anchor, flow.gene_mean) for p in prepared])
        every = np.concatenate(residuals)
        shares = moved.fit_shares(found, every)
        left = every - np.asarray(moved.move(shares, found))
        near = np.concatenate([np.asarray(known_weight(c)).sum(axis=1) > 0 for c in contexts])
        alone = _covariance(every)
        among = _covariance(left[near]) if near.sum() > 1 else alone
        return FlowArrays(
            base=flow,
            path=gaussian.gaussian_path(mean_0, covariance_0, among),
            alone=gaussian.gaussian_path(mean_0, alone_0, alone),
            shares=shares,
            mix=mix,
        )

    def _fit_mix(self, slides, genes, flow, prepared) -> ContextPrior:
        counts = np.concatenate([gene_counts(s, genes) for s in slides])
        cp10k = self.normalization == "log1p_cp10k"
        library = np.concatenate([library_size(s) for s in slides]) if cp10k else None
        x = [
            np.asarray(context_prior.inputs(self._own(p), p.context, flow.gene_mean, flow.gene_std))
            for p in prepared
        ]
        x = np.concatenate(x)
        known = slice(2 * self.context_width, x.shape[1])
        spacing = np.median([median_spacing(s.coords_um) for s in slides])
        return context_prior.fit(
            x, known, counts, library, zinb.fit(counts), self.rho, self.prior_decay_um / spacing
        )

    def _prior_covariance(self, mix, flow, prepared, contexts) -> np.ndarray:
        """Covariance [g, g] of prior draws about their spots' means, over the training spots."""
        total, count = 0.0, 0
        most = max(len(p.coords) for p in prepared)  # one shape, and one trace, for all slides
        for i, (p, context) in enumerate(zip(prepared, contexts, strict=True)):
            x = context_prior.inputs(self._own(p), context, flow.gene_mean, flow.gene_std)
            seen = jax.tree.map(lambda a: _padded(np.asarray(a), most), (x, context))
            for draw in range(_PRIOR_DRAWS):
                keys = jax.random.split(jax.random.key(i * _PRIOR_DRAWS + draw), most)
                off = np.asarray(context_prior.deviation(mix, keys, *seen), np.float64)[: len(x)]
                total, count = total + off.T @ off, count + len(off)
        return total / count

    def _own(self, rows: PreparedSlide | Batch):
        """A spot's own first components [n, p], of the features the network sees."""
        return narrowed(rows.features, self.context_width)

    def stand_on(self, training: TrainingSet, base_params: PyTree) -> TrainingSet:
        """The training set with the parameters of the trained base."""
        fitted = training.fitted
        fitted = fitted._replace(flow=fitted.flow._replace(base_params=base_params))
        return dataclasses.replace(training, fitted=fitted)

    def base_fitted(self, fitted: Fitted) -> stflow.Fitted:
        """The base's own."""
        return stflow.Fitted(fitted.transform, fitted.anchor, fitted.flow.base)

    def restored(self, tree: dict) -> Fitted:
        """As STFlow's."""
        base, flow = super().restored(tree | {"flow": tree["flow"]["base"]}), tree["flow"]
        arrays = FlowArrays(
            base=base.flow,
            path=gaussian.GaussianPath(**flow["path"]),
            alone=gaussian.GaussianPath(**flow["alone"]),
            shares=flow["shares"],
            mix=ContextPrior(**flow["mix"]) if "mix" in flow else None,
            base_params=flow["base_params"],
        )
        return Fitted(base.transform, base.anchor, arrays, tree["residuals"])

    def prepare(
        self,
        slide: Slide,
        fitted: Fitted,
        genes: Sequence[str] | None = None,
        stack: Neighbours | None = None,
    ) -> PreparedSlide:
        """As STFlow's, with what the other sections of the stack say."""
        prepared = super().prepare(slide, fitted, genes)
        if stack is None or not stack.slides:
            return dataclasses.replace(prepared, context=self._no_context(slide.num_spots))
        measured = [stack.expression and s.counts is not None for s in stack.slides]
        expr = [
            expression(s, stack.genes, self.normalization) if there else None
            for s, there in zip(stack.slides, measured, strict=True)
        ]
        residuals = [
            None if y is None else self._residual(s, y, fitted)
            for s, y in zip(stack.slides, expr, strict=True)
        ]
        context = self._context_of(slide, stack.slides, fitted.transform, expr, residuals)
        return dataclasses.replace(prepared, context=context)

    def _residual(self, slide: Slide, expr: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Of the anchor that never saw the slide: as stored, or the fitted one for a new slide."""
        stored = fitted.residuals.get(fingerprint(slide))
        if stored is not None:
            return stored
        return expr - regressors.predict(fitted.anchor, self._context(slide, fitted.transform))

    # Trained part, jitted.

    def init(self, key: jax.Array, arrays: FlowArrays, num_features: int) -> dict:
        """Parameters of the control; of the base too, where it goes on training."""
        params = {}
        if self.control is not None:
            params["control"] = self.control.init(key, arrays.base_params["flow"])
        if self.trained_base or not params:
            params["base"] = jax.tree.map(jnp.copy, arrays.base_params)
        return params

    def loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As STFlow's; half of the time neighbours' expression is hidden.

        `consistency` adds `sum_j w_ij (x_1_hat_i - y_j)^2` over measured neighbours, in standard
        deviations of the gene.
        """
        key, key_hide = jax.random.split(key)
        hide = jax.random.bernoulli(key_hide)
        batch = batch._replace(context=without_expression(batch.context, keep=~hide))
        x_1_hat, error = self._errors(params, arrays, batch, key)
        if self.consistency > 0:
            weight = known_weight(batch.context)[..., None]
            apart = (x_1_hat[:, None] - batch.context.expr) / arrays.gene_std
            error = error + self.consistency * jnp.sum(weight * apart**2, axis=1)
        return masked_sum(error, batch.spot_mask)

    def _base_params(self, params: dict, arrays: FlowArrays) -> dict:
        return params["base"] if "base" in params else arrays.base_params

    def path(self, arrays: FlowArrays, batch: Batch) -> gaussian.GaussianPath:
        """With the moments of spots with, or without, measured neighbours; each spot's own prior.

        Which of the two is decided for a batch, whose slides as a rule are alike in this.
        """
        near = jnp.any(known_weight(batch.context) > 0)
        if batch.tiles.sends is not None:
            near = jax.lax.pmax(near.astype(jnp.int32), AXIS) > 0
        path = jax.tree.map(functools.partial(jnp.where, near), arrays.path, arrays.alone)
        if arrays.mix is None:
            return path
        x = self._prior_inputs(arrays, batch)
        return path._replace(mean_0=context_prior.mean(arrays.mix, x, batch.context))

    def anchor_of(self, arrays: FlowArrays, batch: Batch) -> jax.Array:
        """The regression, moved by what the neighbours measured."""
        return batch.anchor + self._move(arrays, batch)

    def centre(self, params: dict, arrays: FlowArrays, batch: Batch) -> jax.Array:
        """As STFlow's about the unmoved anchor, then moved as a whole."""
        said = None if self.image is None else self.image_says(params, arrays, batch)
        return self.mean(arrays, batch.anchor, said) + self._move(arrays, batch)

    def _move(self, arrays: FlowArrays, batch: Batch) -> jax.Array:
        found = moved.terms(batch.context, batch.anchor, arrays.gene_mean)
        return moved.move(arrays.shares, found)

    def draw_prior(self, arrays: FlowArrays, batch: Batch, key: jax.Array) -> jax.Array:
        """x_0 [N, g], of the mix where there is one."""
        if arrays.mix is None:
            return super().draw_prior(arrays, batch, key)
        keys = priors.spot_keys(key, batch.slide, batch.place)
        x = self._prior_inputs(arrays, batch)
        return context_prior.sample(arrays.mix, keys, x, batch.context)

    def _prior_inputs(self, arrays: FlowArrays, batch: Batch) -> jax.Array:
        return context_prior.inputs(
            self._own(batch), batch.context, arrays.gene_mean, arrays.gene_std
        )

    def image_says(self, params, arrays, batch: Batch, noise=None) -> jax.Array:
        """The base's tower."""
        return super().image_says(self._base_params(params, arrays), arrays, batch, noise)

    def evaluator(self, params, arrays: FlowArrays, batch: Batch, noise=None):
        """As STFlow's, the base's blocks under control."""
        base = self._base_params(params, arrays)
        if self.control is None:
            return super().evaluator(base, arrays, batch, noise)
        network, control, flow = self.network, params["control"], base["flow"]
        tokens = network.encode_features(flow, batch.features, noise)
        moments = (arrays.gene_mean, arrays.gene_std)
        aware = self.control.encode(control, tokens, batch.context, moments, noise)
        features = self.kept_edges(flow, batch) if noise is None else None

        def evaluate(x, t):
            time = jnp.squeeze(t, axis=-1) if jnp.ndim(t) else t
            additions = self.control.additions(
                control, flow, x, time, aware, batch.tiles, batch.spot_mask, batch.slide,
                features, noise,
            )  # fmt: skip
            return self.gate(t) * network.denoise(
                flow, x, time, tokens, batch.tiles, features, noise, additions
            )

        return evaluate


def fingerprint(slide: Slide) -> str:
    """By it a slide is known again, whatever file it comes from: of its places and features.

    Sections on one lattice may share their places; of the features some spots' are enough.
    """
    places = np.round(slide.coords_um - slide.coords_um.mean(axis=0)).astype(np.int64)
    spots = np.unique(np.linspace(0, slide.num_spots - 1, _FINGERPRINTED).astype(np.int64))
    features = np.asarray(rows.take(slide.features, spots), np.float32)
    digest = hashlib.sha256(places.tobytes())
    digest.update(np.ascontiguousarray(features).tobytes())
    return digest.hexdigest()[:32]


def is_neighbour(other: Slide, slide: Slide) -> bool:
    """Whether it is another section of the same stack."""
    return other.patient == slide.patient and other.name != slide.name


def _place(slide: Slide) -> np.ndarray:
    if slide.registered_um is None or slide.z_um is None:
        raise InputError(
            f"{slide.where}: has no place in its stack; register its sections first "
            "(stfm_jax.data.stack)."
        )
    return slide.registered_um


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    """With rows of zeros up to so many."""
    return np.pad(values, ((0, rows - len(values)), *((0, 0),) * (values.ndim - 1)))


def _covariance(residuals: np.ndarray) -> np.ndarray:
    return LedoitWolf(assume_centered=True).fit(residuals.astype(np.float64)).covariance_
