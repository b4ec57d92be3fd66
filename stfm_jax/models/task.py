"""What run.py, the training loop and the evaluation know of a method.

A task is a set of pure functions around a pytree of fitted arrays. Closed-form methods stop after
`fit`; trained ones add `init` and `loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from stfm_jax.data.slide import Slide

PyTree = Any


class Task(Protocol):
    """A trained method. `fitted` and `batch` are pytrees of arrays, never closures."""

    name: str

    def fit(self, slides: Sequence[Slide], genes: Sequence[str], seed: int) -> PyTree:
        """Everything estimated in closed form on training slides: scalers, prior, anchor."""
        ...

    def prepare(self, slide: Slide, fitted: PyTree, genes: Sequence[str]):
        """Host side: what does not change while a slide is trained on or predicted."""
        ...

    def init(self, key: jax.Array, fitted: PyTree, batch: PyTree) -> PyTree:
        """Network parameters."""
        ...

    def loss(
        self, params: PyTree, fitted: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of the loss, number of terms), so that means can be taken over devices."""
        ...
