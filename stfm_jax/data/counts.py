"""What is a count: a non-negative integer, or one that went through logarithms and back."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp

_LOG = logging.getLogger("stfm_jax")
# [ours] By which counts may be off that were regained by expm1: absolute, relative (float32 loses
# so much of a logarithm), and at most.
_OFF, _OFF_SHARE, _OFF_MOST = 1e-3, 2e-6, 0.1
_NOTHING = 1e-6  # smaller values stand for 0


def is_count(values: np.ndarray) -> np.ndarray:
    """Which values are non-negative integers."""
    return np.isfinite(values) & (values >= 0) & (values == np.round(values))


def are_counts(values: np.ndarray) -> bool:
    """Whether all values are counts, or so near to them that they were."""
    values = np.asarray(values, np.float64)
    whole = np.round(values)
    off = np.minimum(_OFF + _OFF_SHARE * whole, _OFF_MOST)
    near = (np.abs(values - whole) <= off) & ((whole > 0) | (np.abs(values) <= _NOTHING))
    return bool((np.isfinite(values) & (values > -_NOTHING) & near).all())


def rounded(counts: sp.csr_matrix, where: str) -> sp.csr_matrix:
    """Counts that were regained by expm1 as integers, which is said; others as they are.

    Args:
      counts: [n, G].
      where: how the log line names the slide.
    """
    if is_count(counts.data).all() or not are_counts(counts.data):
        return counts
    off = float(np.abs(counts.data - np.round(counts.data)).max())
    _LOG.info("%s: counts are off integers by up to %.2g, and rounded", where, off)
    counts = counts.copy()
    counts.data = np.round(counts.data)
    counts.eliminate_zeros()
    return counts
