"""What the methods share that train a network on embeddings, spot by spot or slide by slide.

A subclass names its flax module and says what the module sees together; steps, selection of epochs,
the state and prediction are here. Features, targets, optimiser, epochs and the slide they are
chosen by are the same for all of them [ours], so that a table compares networks. Features are those
of the regressions, principal components of the standardised embeddings: all that a first linear
layer needs. The network predicts deviations from the training spots' mean.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.batching import bucket_size
from stfm_jax.data.expression import expression
from stfm_jax.data.slide import Slide
from stfm_jax.models import regression
from stfm_jax.models.method import (
    Blocks,
    Genes,
    Method,
    NotApplicable,
    Prediction,
    Request,
    Run,
    Section,
)
from stfm_jax.models.regression import RegressionSettings, Seen
from stfm_jax.ops import metrics
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.runtime.devices import fetch, memory_of_computations
from stfm_jax.runtime.distributed import anywhere
from stfm_jax.runtime.memory import GIB
from stfm_jax.settings import setting
from stfm_jax.train.stages import Stage, select_and_refit

PyTree = Any


class Rows(NamedTuple):
    """Spots that a network sees together; batches of the training loop have an axis of sets."""

    x: np.ndarray  # [n, f] features
    y: np.ndarray  # [n, g] expression less its mean; zeros where it is to be predicted
    place: tuple  # what `Network.placed` makes of the coordinates, arrays [n, ...]
    there: np.ndarray  # [n] bool, False of padding


class State(NamedTuple):
    """A trained network."""

    transform: FeatureTransform
    mean: np.ndarray  # [g] of the training spots
    params: dict
    epochs: int  # it was trained for
    memory: dict  # what prediction looks up of the training spots, by name; mostly nothing


@dataclasses.dataclass(frozen=True)
class NetworkSettings(RegressionSettings):
    """Steps of an epoch."""

    batch: int = setting(64, at="networks.batch", least=2)  # spots of a step
    patience: int = setting(20, at="networks.patience", least=0)  # epochs
    passes: int = setting(2, at="networks.passes", least=1)  # of every slide in an epoch, where a
    # step is a slide


@dataclasses.dataclass(frozen=True)
class Network(Method):
    """Base of the networks; itself what the training loop trains (`train.state.Trainable`)."""

    settings: NetworkSettings

    slidewise: ClassVar[bool] = False  # whether all spots of a slide are seen together
    Settings = NetworkSettings
    State = State

    def module(self, num_genes: int) -> nn.Module:
        """The network; called with (rows, train: bool), it returns what `losses` and `read` see."""
        raise NotImplementedError

    def placed(self, coords_um: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the network sees of the places [n, 2] of all spots of a slide, arrays [n, ...]."""
        return ()

    def working_bytes(self, num_spots: int, training: bool) -> int:
        """Memory of one pass over so many spots that are seen together, or of a step."""
        return 0

    def losses(self, outputs: PyTree, y: jax.Array) -> jax.Array:
        """The loss of each spot [n], of y [n, g]: the squared error, mean over the genes."""
        return jnp.mean(jnp.square(self.read(outputs) - y), axis=-1)

    def read(self, outputs: PyTree) -> jax.Array:
        """The predicted expression [n, g], less the mean."""
        return outputs

    def remembered(self, params: PyTree, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """What prediction looks up of the training spots: features [n, f], expression [n, g]."""
        return {}

    def predicted(self, params: PyTree, memory: dict, rows: Rows) -> np.ndarray:
        """Expression [n, g] less the mean."""
        return np.asarray(_read(self, params, rows))

    def seen(self, slides: Sequence[Slide], seen: Seen, run: Run) -> list[np.ndarray]:
        """What the network sees of training slides, per slide [n_i, ...]."""
        return seen.x

    def blocks(
        self, transform: FeatureTransform, slide: Slide
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Spots and what the network sees of them, some at a time; all of a slide, if slidewise."""
        if self.slidewise:
            x = regression.features_of(self.settings, transform, slide, False)
            return iter([(np.arange(slide.num_spots), x)])
        return regression.feature_blocks(self.settings, transform, slide, False)

    def given(self) -> PyTree:
        """Arrays that training starts from, beside its own parameters."""
        return ()

    def finished(self, params: PyTree, given: PyTree) -> PyTree:
        """Parameters as prediction takes them, of those that were trained."""
        return params

    def outputs(self, params: PyTree, given: PyTree, rows: Rows, key: jax.Array) -> PyTree:
        """The network's outputs in training."""
        module = self.module(rows.y.shape[-1])
        return module.apply(params, rows, True, rngs={"dropout": key})

    # What the training loop asks for.

    def init(self, key: jax.Array, arrays: PyTree, width: Rows) -> PyTree:
        """Parameters for rows of these shapes."""
        rows = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), width)
        return self.module(rows.y.shape[-1]).init(key, rows, False)

    def loss(self, params: PyTree, arrays: PyTree, batch: Rows, key: jax.Array):
        """(sum of the loss, number of terms) over the sets of a batch."""
        keys = jax.random.split(key, len(batch.there))

        def of_set(rows: Rows, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = self.losses(self.outputs(params, arrays, rows, key), rows.y)
            return jnp.sum(jnp.where(rows.there, losses, 0.0)), jnp.sum(rows.there)

        return jax.tree.map(jnp.sum, jax.vmap(of_set)(batch, keys))

    # The method.

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        self._require_room(slides, len(run.mesh.local_devices))
        outcomes = select_and_refit(
            run,
            run.settings.epochs,
            lambda: self._stage(*run.held_out(slides), genes, run),
            lambda: self._stage(slides, None, genes, run),
        )
        *_, last = outcomes.values()
        seen, mean = last.fitted
        params = self.finished(fetch(last.trained.params), self.given())
        x, y = seen.pooled
        return State(
            seen.transform, mean, params, last.epochs, self.remembered(params, x, y - mean)
        )

    def _stage(
        self, slides: Sequence[Slide], held: Slide | None, genes: Genes, run: Run
    ) -> tuple[tuple[Seen, np.ndarray], Stage]:
        seen = regression.seen_of(self.settings, slides, genes.scored, False, run.seed, run.once)
        mean = np.concatenate(seen.y).mean(axis=0)
        each = zip(slides, self.seen(slides, seen, run), seen.y, strict=True)
        sets = [
            Rows(x, y - mean, self.placed(s.coords_um), np.ones(len(x), bool)) for s, x, y in each
        ]
        names = [slide.name for slide in slides]
        settings = self.settings
        data = (
            SlideSteps(sets, names, settings.passes)
            if self.slidewise
            else SpotSteps(sets, names, settings.batch)
        )
        score = None if held is None else self._score(seen, mean, held, genes)
        return (seen, mean), Stage(self, data, self.given(), score, self.settings.patience)

    def _score(
        self, seen: Seen, mean: np.ndarray, held: Slide, genes: Genes
    ) -> Callable[[PyTree], float]:
        """Parameters -> mean gene-wise Pearson on the held-out slide."""
        true = expression(held, genes.scored, self.settings.normalization)
        x, y = seen.pooled
        rows = list(self._rows_of(seen.transform, held, len(mean)))

        def score(params: PyTree) -> float:
            params = self.finished(fetch(params), self.given())
            memory = self.remembered(params, x, y - mean)
            found = [self.predicted(params, memory, part)[: len(at)] for at, part in rows]
            return metrics.mean_over_genes(metrics.pearson(np.concatenate(found), true))[0]

        return score

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        self._require_room([case.slide])

        def blocks() -> Blocks:
            for at, part in self._rows_of(state.transform, case.slide, len(state.mean)):
                found = self.predicted(state.params, state.memory, part)[: len(at)]
                yield at, np.maximum(found + state.mean, 0.0)

        return Prediction(blocks())

    def _rows_of(
        self, transform: FeatureTransform, slide: Slide, num_genes: int
    ) -> Iterator[tuple[np.ndarray, Rows]]:
        """Spots and their padded rows, as `blocks`."""
        place = self.placed(slide.coords_um)
        for at, x in self.blocks(transform, slide):
            y = np.zeros((len(at), num_genes), np.float32)
            some = Rows(x, y, tuple(a[at] for a in place), np.ones(len(at), bool))
            yield at, padded(some, bucket_size(len(at)))

    def bytes_needed(self, state: State, num_spots: int, request: Request) -> int:
        components, g = state.transform.components.shape[1], len(state.mean)
        held = (1 << 28) + 4 * num_spots * (components + 3 * g)
        return held + self.working_bytes(bucket_size(num_spots), False)

    def _require_room(self, slides: Sequence[Slide], training_on: int = 0) -> None:
        """Raises NotApplicable for a slide whose spots together need more memory than there is.

        Args:
          slides: to train on, or to predict.
          training_on: devices of this process that train; 0: prediction.
        """
        largest = max(slides, key=lambda slide: slide.num_spots)
        sets = training_on if jax.local_devices()[0].platform == "cpu" else 1  # in one memory
        needed = self.working_bytes(bucket_size(largest.num_spots), training_on > 0) * max(sets, 1)
        there = memory_of_computations()
        if anywhere(needed > there):
            raise NotApplicable(
                f"{largest.where}: {self.name} sees its {largest.num_spots:,} spots together, "
                f"which takes about {needed / GIB:,.1f} GiB of memory in "
                f"{'training' if training_on else 'prediction'}; {there / GIB:,.1f} GiB are free. "
                "Leave the method out, or use a machine with more memory"
            )


class OfSlide(nn.Module):
    """A network of `stfm_jax.nn` that sees a slide, as `Network` calls it."""

    network: nn.Module

    def __call__(self, rows: Rows, train: bool) -> PyTree:
        keys = jax.random.split(self.make_rng("dropout"), len(rows.there)) if train else None
        return self.network(rows.x, *rows.place, rows.there, keys)


@functools.partial(jax.jit, static_argnames="method")
def _read(method: Network, params: PyTree, rows: Rows) -> jax.Array:
    module = method.module(rows.y.shape[-1])
    return method.read(module.apply(params, rows, False))


def moved(given: PyTree, added: PyTree, rate: float) -> PyTree:
    """Weights that training started from, with a share of what it added to them.

    So they take that share of the learning rate.
    """
    return jax.tree.map(lambda a, b: a + rate * b, given, added)


def padded(rows: Rows, size: int) -> Rows:
    """The rows with zeros after them, `size` in all."""
    more = size - len(rows.there)
    return jax.tree.map(lambda a: np.pad(a, [(0, more), *[(0, 0)] * (a.ndim - 1)]), rows)


def _of_step(rows: Rows, devices: int) -> Rows:
    """A batch of one set, and empty ones for the other devices, which idle."""
    return jax.tree.map(
        lambda a: np.concatenate([a[None], np.zeros((devices - 1, *a.shape), a.dtype)]), rows
    )


def _taken(rows: Rows, spots: np.ndarray) -> Rows:
    return jax.tree.map(lambda a: a[spots], rows)


def _shapes(rows: Rows) -> Rows:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), rows)


@dataclasses.dataclass(frozen=True)
class SlideSteps:
    """Every step is a slide (`train.loop.Batches`)."""

    sets: Sequence[Rows]
    names: Sequence[str]
    passes: int

    @functools.cached_property
    def padded(self) -> list[Rows]:
        return [padded(rows, bucket_size(len(rows.there))) for rows in self.sets]

    @property
    def width(self) -> Rows:
        return _shapes(self.padded[0])

    @property
    def steps(self) -> int:
        return self.passes * len(self.sets)

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, epoch])
        return np.concatenate([rng.permutation(len(self.sets)) for _ in range(self.passes)])

    def where(self, seed: int, epoch: int, step: int) -> str:
        return f"slide {self.names[self._order(seed, epoch)[step]]}"

    def batches(
        self, seed: int, epoch: int, first: int = 0, devices: int = 1
    ) -> Iterator[Iterator[Rows]]:
        for i in self._order(seed, epoch)[first:]:
            yield iter([_of_step(self.padded[i], devices)])


@dataclasses.dataclass(frozen=True)
class SpotSteps:
    """Every step is some spots of all slides (`train.loop.Batches`); the last takes a few again."""

    sets: Sequence[Rows]
    names: Sequence[str]
    batch: int

    @functools.cached_property
    def pooled(self) -> Rows:
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self.sets)

    @property
    def size(self) -> int:
        return min(self.batch, len(self.pooled.there))

    @property
    def width(self) -> Rows:
        return _shapes(_taken(self.pooled, np.arange(self.size)))

    @property
    def steps(self) -> int:
        return -(-len(self.pooled.there) // self.size)

    def _spots(self, seed: int, epoch: int) -> np.ndarray:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.pooled.there))
        return np.resize(order, (self.steps, self.size))

    def where(self, seed: int, epoch: int, step: int) -> str:
        ends = np.cumsum([len(rows.there) for rows in self.sets])
        of = np.searchsorted(ends, self._spots(seed, epoch)[step], side="right")
        return f"slide {', '.join(sorted({self.names[i] for i in of}))}"

    def batches(
        self, seed: int, epoch: int, first: int = 0, devices: int = 1
    ) -> Iterator[Iterator[Rows]]:
        for spots in self._spots(seed, epoch)[first:]:
            yield iter([_of_step(_taken(self.pooled, spots), devices)])
