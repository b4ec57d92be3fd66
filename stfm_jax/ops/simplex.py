"""Shares of a whole: splitting counts over children so that nothing is lost or made.

Shares are [..., s] with the children last; mask tells which of the s there are.
"""

from __future__ import annotations

import numpy as np

ALLOCATIONS = ("largest_remainder", "multinomial", "real")


def normalized(shares: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Shares [..., s] >= 0 made to sum to 1 over the children there are; even where all are 0."""
    shares = np.where(mask, np.asarray(shares, np.float64), 0.0)
    total = shares.sum(axis=-1, keepdims=True)
    even = mask / np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    return np.where(total > 0, shares / np.where(total > 0, total, 1.0), even)


def split(counts: np.ndarray, shares: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Counts [...] as real parts [..., s] that add up to rounding, float64."""
    return np.asarray(counts, np.float64)[..., None] * normalized(shares, mask)


def split_largest_remainder(counts: np.ndarray, shares: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Counts [...] as integer parts [..., s] nearest to the real ones; they add up exactly.

    Every part is its real one rounded down; those cut most get the rest, the first of equals first.
    """
    parts = split(counts, shares, mask)
    whole = np.floor(parts).astype(np.int64)
    rest = np.asarray(counts, np.int64) - whole.sum(axis=-1)
    cut = np.where(mask, parts - whole, -1.0)
    rank = np.argsort(np.argsort(-cut, axis=-1, kind="stable"), axis=-1)
    return whole + (rank < rest[..., None])


def split_multinomial(
    rng: np.random.Generator, counts: np.ndarray, shares: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Counts [...] thrown one by one onto the children, [..., s] int64; they add up exactly."""
    shares = normalized(shares, mask)
    shares = np.broadcast_to(shares, (*np.shape(counts), shares.shape[-1]))
    order = np.argsort(shares, axis=-1)  # NumPy gives the last what rounding leaves over
    drawn = rng.multinomial(counts, np.take_along_axis(shares, order, axis=-1))
    return np.take_along_axis(drawn, np.argsort(order, axis=-1), axis=-1)


def allocate(
    kind: str, rng: np.random.Generator, counts: np.ndarray, shares: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Counts [...] split by a method of ALLOCATIONS, [..., s]."""
    if kind == "multinomial":
        return split_multinomial(rng, counts, shares, mask)
    return (split_largest_remainder if kind == "largest_remainder" else split)(counts, shares, mask)
