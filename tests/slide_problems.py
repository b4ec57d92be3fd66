"""Small slides for the networks of slides, and networks with random weights."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from stfm_jax.nn.histogene import HisToGene
from stfm_jax.nn.longnet import LongNet
from stfm_jax.nn.triplex import SIDE, TRIPLEX, Depths
from stfm_jax.ops.window import lattice_window

F, G = 12, 5
NETWORKS = {
    "histogene": HisToGene(G, width=128, depth=2, heads=2, positions=16),
    "triplex": TRIPLEX(
        G, 16, fusion=Depths(2, 2, 4, 0.2), slide=Depths(3, 4, 4, 0.1),
        neighbours=Depths(2, 4, 1, 0.3),
    ),
    "longnet": LongNet(
        G, width=32, depth=2, heads=4, segments=(9, 16, 64, 128), dilations=(1, 2, 4, 8),
    ),
}  # fmt: skip


class Problem(NamedTuple):
    """What networks are given of a slide."""

    x: np.ndarray  # [n, F]
    place: np.ndarray  # [n, 2] column and row
    around: np.ndarray  # [n, 25]
    present: np.ndarray  # [n, 25]
    mask: np.ndarray  # [n]

    def arguments(self, name: str) -> tuple[np.ndarray, ...]:
        """Of a network, but its keys."""
        if name == "triplex":
            return self.x, self.around, self.present, self.mask
        return self.x, self.place, self.mask


def problem(n: int = 50, order: np.ndarray | None = None) -> Problem:
    """n spots of a lattice of 9 columns, with gaps, in an order of their own."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(9 * (n // 6))[:n]
    place = np.stack([cells % 9, cells // 9], axis=1).astype(np.int32)
    x = rng.normal(size=(n, F)).astype(np.float32)
    if order is not None:
        place, x = place[order], x[order]
    around, present = lattice_window(place.astype(float), np.eye(2), SIDE)
    return Problem(x, place, around, present, np.ones(n, bool))


def padded(given: Problem, more: int) -> Problem:
    """With rows behind it that mean nothing: features are large, for them to be noticed."""
    out = Problem(*(np.pad(a, [(0, more), *[(0, 0)] * (a.ndim - 1)]) for a in given))
    out.x[-more:] = 100.0
    return out


def random_params(network, arguments):
    """Of a network; biases, norms and tables too, fresh ones of which are zeros and ones."""
    fresh = jax.jit(network.init)(jax.random.key(0), *arguments)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + 0.2 * rng.normal(size=a.shape).astype(a.dtype), fresh)
