"""Gene programmes: what a spot scores in a list of genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

LEAST = 3  # genes of a list that is scored [ours]


def weights(
    programmes: Mapping[str, Sequence[str]], genes: Sequence[str], spread: np.ndarray
) -> dict[str, np.ndarray]:
    """Weights [g] of each programme of which LEAST genes or more are there and vary.

    A spot's score is the mean z-score of a list's genes; the means that z-scores are taken from
    are the same for all spots, so the sum by these weights correlates alike. No control genes are
    drawn, as scanpy's `score_genes` does: a panel has too few of like height. [ours]

    Args:
      programmes: genes by name.
      genes: [g] that are predicted.
      spread: [g] standard deviation of each on the training spots.
    """
    found = {}
    for name, listed in programmes.items():
        there = np.isin(genes, listed) & (spread > 0)
        if there.sum() >= LEAST:
            found[name] = np.where(there, 1 / np.where(there, spread, 1.0), 0.0) / there.sum()
    return found
