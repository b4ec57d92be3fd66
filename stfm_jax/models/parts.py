"""What methods that split counts predict: shares of a sample's counts, some at a time.

Where a parent has no counts of a gene there is nothing to split, so a prediction is an iterator of
parts, each of some pairs of a parent and a gene that have counts. Nothing is ever held densely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stfm_jax.data.coarsen import Pair
from stfm_jax.models.method import PAIRS, SPLIT, Method, Request
from stfm_jax.settings import Settings
from stfm_jax.train.stages import Run

NUMBERS_AT_ONCE = 1 << 22  # of a field of the children


class Pairs(NamedTuple):
    """Which parent and gene."""

    parent: np.ndarray  # [N] rows
    gene: np.ndarray  # [N] places among the genes asked for


class Split(NamedTuple):
    """Shares of some pairs of a parent and a gene that have counts; not yet made to add up to 1."""

    pairs: Pairs  # [N]
    children: np.ndarray  # [N, s] rows, -1 where there is none
    counts: np.ndarray  # [N] of the parents
    mean: np.ndarray  # [N, s]
    draws: np.ndarray  # [draws, N, s]; no draws of a method that has none


class NoState(NamedTuple):
    """Nothing is learned."""


class Proportional(Method):
    """Base of the trivial splits: in proportion to a smooth field of the parents' counts.

    Subclasses say the field. The consumer makes shares add up to each parent's mass
    (`ops.simplex`).
    """

    problem = SPLIT
    needs = frozenset({PAIRS})
    Settings = Settings
    State = NoState

    def field(self, pair: Pair) -> Callable[[np.ndarray], np.ndarray]:
        """Counts per child [P, g] of the parents -> a field [n, g] at the children.

        Raises:
          NotApplicable: the pair's parents lie such that there is none.
        """
        raise NotImplementedError

    def fit(self, cases: Sequence[Pair], genes: Any, run: Run) -> NoState:
        return NoState()

    def predict(self, state: NoState, case: Pair, request: Request) -> Iterator[Split]:
        return _in_proportion(case, columns(case, request.genes.scored), self.field(case))


def _in_proportion(pair: Pair, wanted: np.ndarray, field: Callable) -> Iterator[Split]:
    table, low = pair.table(), pair.low.counts.tocsc()
    number, at_once = pair.num_children[:, None], max(1, NUMBERS_AT_ONCE // pair.high.num_spots)
    for first in range(0, len(wanted), at_once):
        counts = low[:, wanted[first : first + at_once]].toarray()
        values = np.maximum(field(counts / number), 0.0)
        parent, gene = np.nonzero(counts)
        children = table[parent]
        shares = np.where(children >= 0, values[children, gene[:, None]], 0.0)
        none = np.zeros((0, *shares.shape))
        yield Split(Pairs(parent, first + gene), children, counts[parent, gene], shares, none)


def columns(pair: Pair, genes: Sequence[str]) -> np.ndarray:
    """Columns [g] of some genes in a pair's counts."""
    return np.array(pair.low.columns_of(genes), np.int64)
