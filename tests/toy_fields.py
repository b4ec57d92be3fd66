"""Made-up expression for the tests of scores: pairs that correlate, and fields smooth in space."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def fields(seed=0, n=60, g=5):
    """A prediction and a truth [n, g] that correlate by about 0.5."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, g))
    return 0.6 * true + rng.normal(size=(n, g)), true


def grid(side=12):
    """Spots of a square lattice of 200 um, and the edges from four near ones to each."""
    coords = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 200.0
    senders = cKDTree(coords).query(coords, k=5)[1][:, 1:].ravel()
    return coords, senders, np.repeat(np.arange(len(coords)), 4)


def smooth(coords, g, rng, noise=0.0):
    """Waves over the slide, [n, g], with noise."""
    waves = rng.normal(size=(2, g)) / 900.0
    return np.sin(coords @ waves + rng.uniform(0, 6, g)) + noise * rng.normal(size=(len(coords), g))
