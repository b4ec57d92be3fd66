"""What the experiment, the training loop and the evaluation know of a method.

A task is a hashable bundle of settings with pure functions around pytrees of arrays. Closed-form
methods need no task: they are functions in `models.baselines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from stfm_jax.data.batching import Batch, PreparedSlide
from stfm_jax.data.slide import Slide

PyTree = Any


class TrainingSet(Protocol):
    """Training slides ready for the loop, and what was fitted on them."""

    slides: list[PreparedSlide]
    fitted: PyTree
    residuals: np.ndarray  # [n, g] of the anchor, out of fold


class Task(Protocol):
    """A trained method. Fitted arrays are arguments of the jitted functions, never closures."""

    name: str
    neighbors: int  # of a spot, in the graphs of its batches
    tile: int  # spots of a tile of its batches

    def fit(self, slides: Sequence[Slide], genes: Sequence[str]) -> TrainingSet:
        """Everything estimated in closed form on training slides: scalers, prior, anchor."""
        ...

    def prepare(
        self, slide: Slide, fitted: PyTree, genes: Sequence[str] | None = None
    ) -> PreparedSlide:
        """Host side: what does not change while a slide is predicted (or, with genes, scored)."""
        ...

    def input_width(self, fitted: PyTree) -> int:
        """Features of a spot that the network sees."""
        ...

    def init(self, key: jax.Array, arrays: PyTree, num_features: Any) -> PyTree:
        """Network parameters, for these fitted arrays; num_features: `train.loop.Batches.width`."""
        ...

    def loss(
        self, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of the loss, number of terms), so that means can be taken over devices."""
        ...

    def validation_loss(
        self, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `loss`, of the network as it predicts."""
        ...

    def posterior_mean(
        self, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """E[x_1 | features], [N, g]."""
        ...

    def sample(
        self, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
    ) -> jax.Array:
        """Joint draws, [draws, N, g]."""
        ...
