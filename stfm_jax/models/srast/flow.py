"""SRast: every parent's counts split over its children by a flow on the simplex.

One model serves any panel: it sees pairs of a parent and a gene (`features`),
never which gene. The mean split pools proposals by weights fitted in closed form
(`pooling`); the flow starts there: noise lies about the mean as measured shares do in
training samples, and at t = 0 x_1_hat is the mean [ours].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.coarsen import Pair
from stfm_jax.flow import simplex_path
from stfm_jax.models.parts import columns
from stfm_jax.models.regression import Once, compute
from stfm_jax.models.srast import features, images, latents, pooling
from stfm_jax.models.srast.batches import joined, training_rows
from stfm_jax.models.srast.features import NUM_FACTS, Learned, SplitRows
from stfm_jax.models.srast.images import ImageReader, Images
from stfm_jax.nn.split_net import SplitNet

PyTree = Any
MEAN_DRAWS = 16  # averaged, where the mean has no closed form
IN_CACHE = 512  # pairs whose draws a CPU takes at a time: more do not stay in a core's cache [ours]


class SplitArrays(NamedTuple):
    """The mean split, and scales of what the network sees over the training pairs."""

    pool: np.ndarray  # [F] weights of the proposals in the mean
    mean: np.ndarray  # [q] of the facts
    std: np.ndarray  # [q]
    spread: simplex_path.Spread  # of measured shares about the mean split


class Fitted(NamedTuple):
    """Estimated in closed form on training samples."""

    flow: SplitArrays
    images: Images | None


@dataclasses.dataclass(frozen=True)
class SplitTraining:
    """Training samples ready for the loop."""

    rows: list[SplitRows]  # of each sample
    fitted: Fitted


@dataclasses.dataclass(frozen=True)
class SRast:
    """Settings; hashable."""

    network: SplitNet
    path: str = "dirichlet"
    noise: str = "fitted"  # or uniform, of the path "dirichlet"
    pairing: str = "independent"
    velocity: float = 1.0  # weight of the squared error of x_1_hat
    kl: float = 1.0  # of KL(x_1 || x_1_hat)
    boundary: float = 0.01  # of KL(uniform || x_1_hat): away from corners that data do not ask for
    latents: bool = True  # what the sample's autoencoder learned is seen
    images: ImageReader | None = None  # the children's images are seen
    evaluations: int = 8

    # Closed form, on the host.

    def training_set(
        self,
        pairs: Sequence[Pair],
        genes: Sequence[Sequence[str]],
        seed: int = 0,
        once: Once = compute,
    ) -> SplitTraining:
        """The mean split, scales, what images say, and all pairs to train on.

        Args:
          pairs: training samples, with the children's counts.
          genes: of each sample, to train on; their names go no further than this.
          seed: of every draw and fit.
          once: see `train.stages.Run.once`.
        """
        models = [learned_of(pair, seed, once) for pair in pairs]
        seen, said = None, [None] * len(pairs)
        if self.images:
            seen, said = images.fit(self.images, pairs, models, seed)
        parts = [
            self.rows_of(pair, Learned(model, image), names, seed, once)
            for pair, names, model, image in zip(pairs, genes, models, said, strict=True)
        ]
        return SplitTraining(parts, Fitted(fit_arrays(parts, seed), seen))

    def rows_of(
        self, pair: Pair, learned: Learned, genes: Sequence[str], seed: int, once: Once = compute
    ) -> SplitRows:
        """Pairs of parent and gene to train or to validate on, with the children's counts."""

        def make() -> SplitRows:
            sample = features.sample(pair, learned)
            return self.seen(training_rows(sample, columns(pair, genes), seed))

        if learned.image is not None:  # which depends on the samples beside it
            return make()
        return once(make, [pair], "rows", self.latents, tuple(genes), seed)

    def learn(self, pair: Pair, fitted: Fitted, seed: int = 0, once: Once = compute) -> Learned:
        """What is learned of a sample before it is split; its children's counts are not seen."""
        model = learned_of(pair, seed, once)
        if fitted.images is None:
            return Learned(model)
        return Learned(model, images.of_sample(self.images, fitted.images, pair, model, seed))

    def seen(self, rows: SplitRows) -> SplitRows:
        """The rows without what the sample's autoencoder learned, where that is switched off."""
        if self.latents:
            return rows
        known = np.array([not name.startswith("rate") for name in features.PLAIN])
        kept = np.ones(rows.proposals.shape[-1], np.float32)
        kept[: len(known)] = known
        plain = np.arange(rows.facts.shape[-1]) < NUM_FACTS
        return rows._replace(proposals=rows.proposals * kept, facts=rows.facts * plain)

    # Trained part, jitted.

    def init(self, key: jax.Array, arrays: SplitArrays, width: int) -> dict:
        """Network parameters; width is that of the facts."""
        one = jnp.ones((1, 2))
        plain, general = jnp.zeros((1, NUM_FACTS)), jnp.zeros((1, width - NUM_FACTS))
        return self.network.init(key, one, plain, general, one > 0, one, jnp.zeros(1))

    def line(self, arrays: SplitArrays, rows: SplitRows) -> simplex_path.Line:
        """What is known of the path without the network."""
        logits, spread = rows.proposals @ arrays.pool, arrays.spread
        return simplex_path.line(self.path, self.noise, logits, rows.counts, spread, rows.mask)

    def logits(
        self,
        params: PyTree,
        arrays: SplitArrays,
        rows: SplitRows,
        line: simplex_path.Line,
        x_t: jax.Array,
        t: jax.Array,
    ) -> jax.Array:
        """Logits [N, s] of the shares, at a point x_t [N, s] of the path at times t [N]."""
        facts = jnp.clip((rows.facts - arrays.mean) / arrays.std, -4.0, 4.0)
        state = simplex_path.shown(self.path, x_t, t, rows.mask)
        plain, general = facts[:, :NUM_FACTS], facts[:, NUM_FACTS:]
        learned = self.network.apply(params, line.logits, plain, general, rows.mask, state, t)
        known = simplex_path.linear(line, x_t, t)
        return simplex_path.logits_of(self.path, known, rows.mask) + learned

    def loss(
        self, params: PyTree, arrays: SplitArrays, batch: SplitRows, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sum over pairs of the weighted terms, and the sum of the weights.

        t ~ U(0, 1) for each pair. A pair weighs as `pooling.pair_weight` says.
        """
        batch = self.seen(batch)
        key_t, key_0 = jax.random.split(key)
        t = jax.vmap(jax.random.uniform)(_row_keys(key_t, batch.place))
        line = self.line(arrays, batch)
        x_1 = simplex_path.target(self.path, batch.ratios, batch.counts, batch.mask)
        x_0 = simplex_path.prior(self.path, _row_keys(key_0, batch.place), line, batch.mask)
        if self.pairing == "optimal":
            x_0 = simplex_path.paired(x_0, x_1, batch.mask)
        x_t = (1.0 - t[:, None]) * x_0 + t[:, None] * x_1
        return self._terms(batch, x_1, self.logits(params, arrays, batch, line, x_t, t))

    def _terms(self, batch: SplitRows, x_1, logits) -> tuple[jax.Array, jax.Array]:
        x_1_hat = simplex_path.estimate(self.path, logits, batch.mask)
        number = jnp.sum(batch.mask, axis=1)
        even = batch.mask / number[:, None]
        terms = self.velocity * jnp.sum((x_1_hat - x_1) ** 2, axis=1)
        terms += self.kl * _kl(batch.ratios, logits, batch.mask)
        terms += self.boundary * _kl(even, logits, batch.mask)
        weight = pooling.pair_weight(batch.counts)
        return jnp.sum(weight * terms), jnp.sum(weight)

    def mean(
        self,
        params: PyTree,
        arrays: SplitArrays,
        rows: SplitRows,
        key: jax.Array,
        draws: int = MEAN_DRAWS,
    ) -> jax.Array:
        """E[shares] [N, s]: the pooled split, x_1_hat at t = 0 whatever x_0.

        Of centred log-ratios x_1_hat is no mean of shares, and some draws are averaged.
        """
        if self.path == "dirichlet":
            return self.line(arrays, self.seen(rows)).mean_1
        return jnp.mean(self.sample(params, arrays, rows, key, draws), axis=0)

    def sample(
        self, params: PyTree, arrays: SplitArrays, rows: SplitRows, key: jax.Array, draws: int
    ) -> jax.Array:
        """Draws of the shares, [draws, N, s]; draw i is the same however many are taken."""

        def drawn(some: SplitRows) -> jax.Array:
            return self._sample(params, arrays, some, key, draws)

        rows = self.seen(rows)
        if jax.default_backend() != "cpu" or len(rows.counts) <= IN_CACHE:
            return drawn(rows)
        shape = draws, IN_CACHE, rows.mask.shape[1]
        found = jax.lax.map(
            lambda some: jax.lax.cond(
                jnp.any(some.counts > 0), drawn, lambda _: jnp.zeros(shape), some
            ),
            _cut(rows, IN_CACHE),
        )  # [pieces, draws, IN_CACHE, s]; nothing is drawn of padding
        found = jnp.moveaxis(found, 0, 1).reshape(draws, -1, rows.mask.shape[1])
        return found[:, : len(rows.counts)]

    def _sample(self, params, arrays, rows: SplitRows, key, draws: int) -> jax.Array:
        line = self.line(arrays, rows)
        times = jnp.linspace(0.0, 1.0, self.evaluations + 1)

        def stepped(x, interval, logits):
            x_1_hat = simplex_path.estimate(self.path, logits, rows.mask)
            return simplex_path.step(line, x, x_1_hat, *interval)

        def step(x, interval):
            t = jnp.full(len(x), interval[0])
            return stepped(x, interval, self.logits(params, arrays, rows, line, x, t)), None

        def one(i):
            keys = _row_keys(jax.random.fold_in(key, i), rows.place)
            x = simplex_path.prior(self.path, keys, line, rows.mask)
            known = simplex_path.linear(line, x, jnp.zeros(len(x)))  # all there is at t = 0
            x = stepped(x, times[:2], simplex_path.logits_of(self.path, known, rows.mask))
            x, _ = jax.lax.scan(step, x, (times[1:-1], times[2:]))
            return simplex_path.shares(self.path, x, rows.mask)

        return jax.lax.map(one, jnp.arange(draws))


def learned_of(pair: Pair, seed: int, once: Once = compute) -> latents.SampleModel:
    """What a sample's own counts tell, whatever it is for."""
    return once(lambda: latents.fit(pair.low, seed), [pair], "latents", seed)


def fit_arrays(parts: Sequence[SplitRows], seed: int = 0) -> SplitArrays:
    """The mean split, and scales, of the rows of some samples."""
    every = joined(parts)
    std = every.facts.std(axis=0)
    pool = pooling.fit(every, seed)
    return SplitArrays(
        pool,
        every.facts.mean(axis=0),
        np.where(std > 1e-6, std, 1.0).astype(np.float32),
        pooling.spread(every, pool, seed),
    )


def _cut(rows: SplitRows, size: int) -> SplitRows:
    """Rows as pieces [m, size, ...], the last one filled up with its last row."""
    missing = -len(rows.counts) % size

    def cut(a: jax.Array) -> jax.Array:
        filled = jnp.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1), mode="edge")
        return filled.reshape(-1, size, *a.shape[1:])

    return jax.tree.map(cut, rows)


def _row_keys(key: jax.Array, place: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, place)


def _kl(shares: jax.Array, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """KL(shares || softmax of logits), [N]."""
    logs = jax.nn.log_softmax(jnp.where(mask, logits, -1e9), axis=1)
    ours = jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-12)), 0.0)
    return jnp.sum(ours - jnp.where(mask, shares * logs, 0.0), axis=1)
