"""Shares of a whole: splitting counts over children so that nothing is lost or made.

Shares are [..., s] with the children last; mask tells which of the s there are.
"""

from __future__ import annotations

import numpy as np


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
    order = np.argsort(-cut, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(cut.shape[-1]), order.shape), axis=-1)
    return whole + (rank < rest[..., None])


def split_multinomial(
    rng: np.random.Generator, counts: np.ndarray, shares: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Counts [...] thrown one by one onto the children, [..., s] int64; they add up exactly."""
    left = np.asarray(counts, np.int64)
    shares, parts = normalized(shares, mask), []
    rest = np.ones(left.shape)
    for child in range(shares.shape[-1]):
        share = shares[..., child]
        last = ~(mask[..., child + 1 :] & (shares[..., child + 1 :] > 0)).any(axis=-1)
        chance = np.where(last & (share > 0), 1.0, share / np.maximum(rest, 1e-300))
        part = rng.binomial(left, np.clip(chance, 0.0, 1.0))
        parts.append(part)
        left, rest = left - part, rest - share
    return np.stack(parts, axis=-1)
