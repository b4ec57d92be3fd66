"""HoloTea: the joint expression of a section, given the other sections of its stack.

It holds an STFlow, its base, which is trained first; everything here is added to that (arXiv
2511.14613, whose text gives no formulas that we could read: the forms are [ours], docs/methods.md
section 2):
- the regression is moved by what neighbouring sections measured (`regression.moved`);
- a ControlNet (`nn.control`) adds to the base's blocks, from nothing at initialisation;
- the prior mixes neighbours' expression with a ZINB of the spot's own (`flow.context_prior`);
- a loss draws predictions toward measured neighbours.
One model serves both regimes: in training the neighbours' expression is hidden half of the time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.batching import Batch, PreparedSlide
from stfm_jax.data.expression import expression, gene_counts, library_size
from stfm_jax.data.retrieval import Reach
from stfm_jax.data.retrieved_context import context_of, narrowed, no_context
from stfm_jax.data.slide import Slide
from stfm_jax.flow import context_prior, gaussian, priors
from stfm_jax.flow.context_prior import ContextPrior
from stfm_jax.models.holotea.fitted import Fitted, FlowArrays, Neighbours, fingerprint
from stfm_jax.models.neighbour_copy import in_stack, placed
from stfm_jax.models.stflow import flow as stflow
from stfm_jax.models.stflow import joint
from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.models.stflow.joint import Parts
from stfm_jax.nn.control import ControlNet
from stfm_jax.ops import zinb
from stfm_jax.ops.context import Context, known_weight, without_expression
from stfm_jax.ops.neighbors import median_spacing
from stfm_jax.ops.tiles import AXIS
from stfm_jax.regression import moved, regressors
from stfm_jax.regression.targets import residual_covariance

PRIORS = ("mix", "base")
BASES = ("frozen", "trained")
_PRIOR_DRAWS = 16  # of a training spot, for the covariance of the prior
_SEEDS = 1 << 20  # keeps the draws of one seed apart from another's

PyTree = Any


@dataclasses.dataclass(frozen=True)
class HoloTea:
    """The method with its settings; hashable, so it is a static argument of jitted functions."""

    base: STFlow  # what it stands on
    control: ControlNet | None = None  # None: ablation, regression and prior alone know the stack
    reach: Reach = dataclasses.field(default_factory=Reach)
    context_width: int = 64  # principal components of a retrieved spot that are seen
    trained_base: bool = False  # whether the base goes on training
    see_expression: bool = True  # of measured neighbours
    rho: float = 0.5  # share of the empirical prior
    prior_decay_um: float = 50.0
    context_mix: bool = True  # whether the prior knows the context
    consistency: float = 0.0  # weight of the loss of that name

    @property
    def neighbors(self) -> int:
        """Neighbours of a spot on its own section."""
        return self.base.neighbors

    @property
    def tile(self) -> int:
        """Spots of a tile."""
        return self.base.tile

    # Closed-form part, on the host.

    def training_set(
        self,
        slides: Sequence[Slide],
        genes: Sequence[str],
        base: stflow.TrainingSet,
        base_params: PyTree,
        seed: int = 0,
    ) -> stflow.TrainingSet:
        """The base's training set with contexts, shares of the move, prior and path of the stack.

        Args:
          slides: registered.
          genes: to predict.
          base: of the same slides and genes.
          base_params: of the trained base.
          seed: of the regressions that were left out, and of the prior's fit and draws.
        """
        expr = [p.expr for p in base.slides]
        sizes = np.cumsum([len(y) for y in expr])[:-1]
        residuals = np.split(base.residuals, sizes)
        seen_by = self._residuals_seen(slides, base, seed)
        transform, seen = base.fitted.transform, self.see_expression
        contexts = [
            self._context_of(slide, slides, transform, expr if seen else None, seen_by(i))
            for i, slide in enumerate(slides)
        ]
        prepared = [
            dataclasses.replace(p, context=context)
            for p, context in zip(base.slides, contexts, strict=True)
        ]
        flow = self._flow_arrays(slides, genes, base, prepared, residuals, seed)
        stored = {
            fingerprint(slide): r.astype(np.float32)
            for slide, r in zip(slides, residuals, strict=True)
        }
        flow = flow._replace(base_params=base_params)
        fitted = Fitted(base.fitted.transform, base.fitted.anchor, flow, stored)
        return stflow.TrainingSet(prepared, fitted, base.anchor_choice, base.residuals)

    def _residuals_seen(self, slides, base: stflow.TrainingSet, seed: int):
        """See `moved.residuals_seen`."""
        x = [p.features for p in base.slides]
        if not self.base.token_context:
            x = [self.base.context_of(s, base.fitted.transform) for s in slides]
        y, coords = [p.expr for p in base.slides], [s.coords_um for s in slides]
        return moved.residuals_seen(self.base.anchor, x, y, coords, base.anchor_choice, seed)

    def _context_of(self, slide: Slide, others: Sequence[Slide], transform, expr, residuals):
        """What the spots of a slide see of the others of its stack.

        Args:
          slide: registered.
          others: registered slides; those of other stacks and the slide itself are left out here.
          transform: of the features.
          expr: [n_j, g] of each of the others, None where unknown; None: all unknown.
          residuals: [n_j, g] likewise; not looked at where expression is unknown.
        """
        kept = [j for j, other in enumerate(others) if in_stack(other, slide)]
        expr = [None if expr is None else expr[j] for j in kept]
        residuals = [None if y is None else residuals[j] for j, y in zip(kept, expr, strict=True)]
        sections = placed([slide, *(others[j] for j in kept)], transform)
        spacing = median_spacing(slide.coords_um)
        sizes = self.context_width, self.base.network.num_genes
        return context_of(sections, [None, *expr], [None, *residuals], self.reach, spacing, *sizes)

    def _no_context(self, n: int) -> Context:
        return no_context(n, self.reach, self.context_width, self.base.network.num_genes)

    def _flow_arrays(self, slides, genes, base, prepared, residuals, seed) -> FlowArrays:
        flow = base.fitted.flow
        contexts = [p.context for p in prepared]
        mix, mean_0, covariance_0 = None, flow.prior.mean, flow.prior.covariance
        alone_0 = covariance_0
        if self.context_mix:
            mix = self._fit_mix(slides, genes, flow, prepared, seed)
            hidden = [without_expression(c) for c in contexts]
            covariance_0 = self._prior_covariance(mix, flow, prepared, contexts, seed)
            alone_0 = self._prior_covariance(mix, flow, prepared, hidden, seed)
        found = np.concatenate([moved.terms(p.context, p.anchor, flow.gene_mean) for p in prepared])
        every = np.concatenate(residuals)
        shares = moved.fit_shares(found, every)
        left = every - np.asarray(moved.move(shares, found))
        near = np.concatenate([np.asarray(known_weight(c)).sum(axis=1) > 0 for c in contexts])
        alone = residual_covariance(every)
        among = residual_covariance(left[near]) if near.sum() > 1 else alone
        return FlowArrays(
            base=flow,
            path=gaussian.gaussian_path(mean_0, covariance_0, among),
            alone=gaussian.gaussian_path(mean_0, alone_0, alone),
            shares=shares,
            mix=mix,
        )

    def _fit_mix(self, slides, genes, flow, prepared, seed: int) -> ContextPrior:
        counts = np.concatenate([gene_counts(s, genes) for s in slides])
        cp10k = self.base.normalization == "log1p_cp10k"
        library = np.concatenate([library_size(s) for s in slides]) if cp10k else None
        x = [
            np.asarray(context_prior.inputs(self._own(p), p.context, flow.gene_mean, flow.gene_std))
            for p in prepared
        ]
        x = np.concatenate(x)
        known = slice(2 * self.context_width, x.shape[1])
        spacing = np.median([median_spacing(s.coords_um) for s in slides])
        start, decay = zinb.fit(counts), self.prior_decay_um / spacing
        return context_prior.fit(x, known, counts, library, start, self.rho, decay, seed)

    def _prior_covariance(self, mix, flow, prepared, contexts, seed: int) -> np.ndarray:
        """Covariance [g, g] of prior draws about their spots' means, over the training spots."""
        total, count = 0.0, 0
        most = max(len(p.coords) for p in prepared)  # one shape, and one trace, for all slides
        for i, (p, context) in enumerate(zip(prepared, contexts, strict=True)):
            x = context_prior.inputs(self._own(p), context, flow.gene_mean, flow.gene_std)
            seen = jax.tree.map(lambda a: _padded(np.asarray(a), most), (x, context))
            for draw in range(_PRIOR_DRAWS):
                key = jax.random.key(seed * _SEEDS + i * _PRIOR_DRAWS + draw)
                keys = jax.random.split(key, most)
                off = np.asarray(context_prior.deviation(mix, keys, *seen), np.float64)[: len(x)]
                total, count = total + off.T @ off, count + len(off)
        return total / count

    def _own(self, rows: PreparedSlide | Batch):
        """A spot's own first components [n, p], of the features the network sees."""
        return narrowed(rows.features, self.context_width)

    def prepare(
        self,
        slide: Slide,
        fitted: Fitted,
        genes: Sequence[str] | None = None,
        stack: Neighbours | None = None,
    ) -> PreparedSlide:
        """A slide to predict or, with `genes`, to score, with what the stack says of it."""
        prepared = self.base.prepare(slide, fitted, genes)
        if stack is None or not stack.slides:
            return dataclasses.replace(prepared, context=self._no_context(slide.num_spots))
        measured = [stack.expression and s.counts is not None for s in stack.slides]
        expr = [
            expression(s, stack.genes, self.base.normalization) if there else None
            for s, there in zip(stack.slides, measured, strict=True)
        ]
        residuals = [
            None if y is None else self._residual(s, y, fitted)
            for s, y in zip(stack.slides, expr, strict=True)
        ]
        context = self._context_of(slide, stack.slides, fitted.transform, expr, residuals)
        return dataclasses.replace(prepared, context=context)

    def _residual(self, slide: Slide, expr: np.ndarray, fitted: Fitted) -> np.ndarray:
        """Residual [n, g] of an anchor that never saw the slide: as stored, or the fitted one."""
        stored = fitted.residuals.get(fingerprint(slide))
        if stored is not None:
            return stored
        x = self.base.context_of(slide, fitted.transform)
        return expr - regressors.predict(fitted.anchor, x)

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
        """STFlow's loss; half of the time neighbours' expression is hidden.

        `consistency` adds `sum_j w_ij (x_1_hat_i - y_j)^2` over measured neighbours, in standard
        deviations of the gene.
        """
        key, key_hide = jax.random.split(key)
        hide = jax.random.bernoulli(key_hide)
        batch = batch._replace(context=without_expression(batch.context, keep=~hide))
        parts = self.parts(params, arrays, batch, joint.noise_keys(key, batch))
        x_1_hat, error = joint.errors(self.base, parts, arrays, batch, key)
        if self.consistency > 0:
            weight = known_weight(batch.context)[..., None]
            apart = (x_1_hat[:, None] - batch.context.expr) / arrays.gene_std
            error = error + self.consistency * jnp.sum(weight * apart**2, axis=1)
        return joint.masked_sum(error, batch.spot_mask)

    def validation_loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`loss` without the network's noise, all neighbours seen, without consistency."""
        parts = self.parts(params, arrays, batch)
        _, error = joint.errors(self.base, parts, arrays, batch, key)
        return joint.masked_sum(error, batch.spot_mask)

    @functools.partial(jax.jit, static_argnames=("self", "draws"))
    def posterior_mean(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """E[x_1 | features, stack] [N, g]; see `joint.posterior_mean`."""
        return joint.posterior_mean(self.base, self.parts(params, arrays, batch), key, draws)

    @functools.partial(jax.jit, static_argnames=("self", "draws"))
    def sample(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """Joint draws of x_1 given features and stack, [draws, N, g]."""
        return joint.sample(self.base, self.parts(params, arrays, batch), key, draws)

    def parts(
        self, params: dict, arrays: FlowArrays, batch: Batch, noise: jax.Array | None = None
    ) -> Parts:
        """What draws of a batch are made of: the base's, each with what the stack adds to it."""
        base_params = params["base"] if "base" in params else arrays.base_params
        parts = self.base.parts(base_params, arrays.base, batch, noise)
        found = moved.terms(batch.context, batch.anchor, arrays.gene_mean)
        move = moved.move(arrays.shares, found)
        return parts._replace(
            path=self._path(arrays, batch),
            anchor=batch.anchor + move,
            centre=parts.centre + move,
            network=functools.partial(
                self._evaluator, parts.network, params, base_params, arrays, batch, noise
            ),
            prior=functools.partial(self._draw_prior, parts.prior, arrays, batch),
        )

    def _path(self, arrays: FlowArrays, batch: Batch) -> gaussian.GaussianPath:
        """Moments of spots with, or without, measured neighbours; each spot's own prior mean.

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

    def _draw_prior(self, of_base, arrays: FlowArrays, batch: Batch, key: jax.Array) -> jax.Array:
        """x_0 [N, g], of the mix where there is one."""
        if arrays.mix is None:
            return of_base(key)
        keys = priors.spot_keys(key, batch.slide, batch.place)
        x = self._prior_inputs(arrays, batch)
        return context_prior.sample(arrays.mix, keys, x, batch.context)

    def _prior_inputs(self, arrays: FlowArrays, batch: Batch) -> jax.Array:
        return context_prior.inputs(
            self._own(batch), batch.context, arrays.gene_mean, arrays.gene_std
        )

    def _evaluator(self, of_base, params, base_params, arrays: FlowArrays, batch: Batch, noise):
        """(state, t) -> network output: the base's blocks under control."""
        if self.control is None:
            return of_base()
        base, control, flow = self.base, params["control"], base_params["flow"]
        tokens = base.network.encode_features(flow, batch.features, noise)
        moments = (arrays.gene_mean, arrays.gene_std)
        aware = self.control.encode(control, tokens, batch.context, moments, noise)
        features = base.kept_edges(flow, batch) if noise is None else None

        def evaluate(x, t):
            time = jnp.squeeze(t, axis=-1) if jnp.ndim(t) else t
            additions = self.control.additions(
                control, flow, x, time, aware, batch.tiles, batch.spot_mask, batch.slide,
                features, noise,
            )  # fmt: skip
            return base.gate(t) * base.network.denoise(
                flow, x, time, tokens, batch.tiles, features, noise, additions
            )

        return evaluate


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    """With rows of zeros up to so many."""
    return np.pad(values, ((0, rows - len(values)), *((0, 0),) * (values.ndim - 1)))
