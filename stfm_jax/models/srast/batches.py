"""Pairs of parent and gene as training takes them: shuffled over all samples, in equal batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from stfm_jax.models.srast.features import Sample, SplitRows, rows

MAX_PARENTS = 5000  # of a sample, drawn once; more would not be held
_SEEDS = 1 << 20  # keeps the draw of parents apart from that of batches


def training_rows(sample: Sample, genes: np.ndarray, seed: int) -> SplitRows:
    """Pairs with something to learn from: of parents with at least two children."""
    parents = np.flatnonzero(sample.pair.num_children > 1)
    if len(parents) > MAX_PARENTS:
        rng = np.random.default_rng([seed, _SEEDS])
        parents = np.sort(rng.choice(parents, MAX_PARENTS, replace=False))
    return rows(sample, parents, genes)[1]


def taken(some: SplitRows, index: np.ndarray) -> SplitRows:
    return SplitRows(*(a[index] for a in some))


def joined(parts: Sequence[SplitRows]) -> SplitRows:
    """Rows of several samples, as wide as the widest."""
    s = max(part.mask.shape[1] for part in parts)

    def widened(a: np.ndarray, axis: int | None) -> np.ndarray:
        if axis is None:
            return a
        pad = [(0, s - a.shape[1] if i == axis else 0) for i in range(a.ndim)]
        return np.pad(a, pad)

    children = SplitRows(1, None, 1, None, 1, None)
    wide = [[widened(a, axis) for a, axis in zip(p, children, strict=True)] for p in parts]
    return SplitRows(*(np.concatenate(each) for each in zip(*wide, strict=True)))


def padded(some: SplitRows, size: int) -> SplitRows:
    """With rows of no counts and one child up to a size."""
    n = len(some.counts)
    out = [np.pad(a, [(0, size - n)] + [(0, 0)] * (a.ndim - 1)) for a in some]
    out = SplitRows(*out)
    out.mask[n:, 0] = True
    return out


@dataclasses.dataclass(frozen=True)
class SplitBatches:
    """The steps of every epoch (`train.loop.Batches`)."""

    rows: SplitRows
    names: tuple[str, ...]  # of the samples, for messages
    size: int  # rows of a step
    at_once: int = 1 << 31  # that a device takes at a time, at most

    @property
    def width(self) -> int:
        """Width of the facts."""
        return self.rows.facts.shape[1]

    @property
    def steps(self) -> int:
        return -(-len(self.rows.counts) // self.size)

    def where(self, seed: int, epoch: int, step: int) -> str:
        return f"slides {', '.join(self.names[:3])}{', ...' if len(self.names) > 3 else ''}"

    def batches(
        self, seed: int, epoch: int, first: int = 0, devices: int = 1
    ) -> Iterator[Iterator[SplitRows]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.rows.counts))
        size = -(-self.size // devices) * devices
        at_once = min(size, self.at_once * devices)
        for step in range(first, self.steps):
            index = order[step * self.size : (step + 1) * self.size]
            pieces = [index[i : i + at_once] for i in range(0, len(index), at_once)]
            yield iter([padded(taken(self.rows, piece), at_once) for piece in pieces])
