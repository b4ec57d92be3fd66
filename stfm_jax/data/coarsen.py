"""Coarser spots out of finer ones: parents, whose counts are the sums of their children's.

Groups of points of the slide's lattice, squares of a size, or parents that a file names. At the
edge of the tissue a parent has fewer children.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.lattice import find_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

# Steps from the centre of a hexagonal flower by (i + 5 j) mod 7, which is 0 at the centres.
_FLOWER = np.array([(0, 0), (1, 0), (0, -1), (1, -1), (-1, 1), (0, 1), (-1, 0)])
GROUPS = {"2x2": 4, "4x4": 16, "hex7": 7}  # children of a whole parent


@dataclasses.dataclass(frozen=True)
class Pair:
    """One tissue at two resolutions: P parents and n children, G genes.

    Construction validates: every parent has children, and its counts are their sum.
    """

    low: Slide  # the parents
    high: Slide  # the children
    parent: np.ndarray  # [n] int64, row of the child's parent

    def __post_init__(self):
        _validate(self)

    @property
    def offset_um(self) -> np.ndarray:
        """From its parent to each child, [n, 2]."""
        return self.high.coords_um - self.low.coords_um[self.parent]

    @property
    def num_children(self) -> np.ndarray:
        """Of every parent, [P]."""
        return np.bincount(self.parent, minlength=self.low.num_spots)

    def table(self) -> np.ndarray:
        """Rows of every parent's children, [P, most], in their order; -1 where there are fewer."""
        order, children = np.argsort(self.parent, kind="stable"), self.num_children
        first = np.cumsum(children) - children
        place = np.arange(len(order)) - first[self.parent[order]]
        table = np.full((len(children), children.max()), -1)
        table[self.parent[order], place] = order
        return table


def by_lattice(slide: Slide, group: str = "2x2", shift: tuple[int, int] = (0, 0)) -> Pair:
    """Parents that are groups of points of the slide's lattice.

    Args:
      slide: with counts.
      group: of GROUPS: 2 x 2 or 4 x 4 steps of the lattice, or the flowers of seven of a hexagonal
        one.
      shift: steps by which the groups are moved against the slide's first point.

    Raises:
      InputError: the spots lie on no lattice, or flowers are asked for on a square one.
    """
    lattice, index = find_lattice(slide.coords_um, slide.where)
    shift = np.asarray(shift)
    index = index + shift
    if group == "hex7":
        if lattice.kind != "hex":
            raise InputError(
                f"{slide.where}: its lattice is {lattice.kind}, groups of hex7 need hex."
            )
        group_of = index - _FLOWER[(index[:, 0] + 5 * index[:, 1]) % 7]
        middle = group_of - shift
    else:
        side = int(group[0])
        group_of = index // side
        middle = side * group_of + (side - 1) / 2 - shift
    return _gathered(slide, group_of, lattice.points(middle))


def by_size(slide: Slide, size_um: float) -> Pair:
    """Parents that are squares of a size, for spots on no lattice (cells, molecules' bins)."""
    corner = slide.coords_um.min(axis=0)
    square = np.floor((slide.coords_um - corner) / size_um).astype(np.int64)
    middle = corner + (square + 0.5) * size_um
    return _gathered(slide, square, middle)


def by_name(slide: Slide, parents: np.ndarray) -> Pair:
    """Parents named for every spot, [n] str; each lies amid its children."""
    names, parent = np.unique(np.asarray(parents, str), return_inverse=True)
    if "" in names or "nan" in names:
        lost = int(np.isin(parents, ("", "nan")).sum())
        raise InputError(f"{slide.where}: {lost} of {slide.num_spots} spots have no parent.")
    members = _members(parent)
    middle = (members @ slide.coords_um) / members.sum(axis=1).A1[:, None]
    return _summed(slide, parent, names, middle)


def _gathered(slide: Slide, group_of: np.ndarray, middle: np.ndarray) -> Pair:
    """Parents by group [n, 2] of integers; middle [n, 2] of each spot's group, micrometres."""
    groups, one, parent = np.unique(group_of, axis=0, return_index=True, return_inverse=True)
    first, second = groups.astype(str).T
    names = np.char.add(np.char.add(first, "x"), second)
    return _summed(slide, parent.ravel(), names, middle[one])


def _summed(slide: Slide, parent: np.ndarray, names: np.ndarray, coords_um: np.ndarray) -> Pair:
    if slide.counts is None:
        raise InputError(f"{slide.where}: has no counts, so its spots cannot be added up.")
    low = dataclasses.replace(
        slide, barcodes=names, coords_um=coords_um, coords_in=coords_um, spatial_unit="um",
        counts=(_members(parent) @ slide.counts).tocsr(), features=None, encoder=None, patches=None,
        registered_um=None,
    )  # fmt: skip
    return Pair(low, slide, parent)


def _members(parent: np.ndarray) -> sp.csr_matrix:
    """[P, n], 1 where a spot is a parent's child."""
    n = len(parent)
    return sp.csr_matrix((np.ones(n, np.float32), (parent, np.arange(n))))


def _validate(pair: Pair) -> None:
    low, high, parent = pair.low, pair.high, np.asarray(pair.parent)
    where = f"{low.where} and {high.where}"
    if parent.shape != (high.num_spots,) or parent.min() < 0 or parent.max() >= low.num_spots:
        raise InputError(
            f"{where}: expected one of {low.num_spots} parents for each of {high.num_spots} "
            "children; some children have none."
        )
    childless = int((pair.num_children == 0).sum())
    if childless:
        raise InputError(
            f"{where}: {childless} of {low.num_spots} parents have no children; drop them."
        )
    if not np.array_equal(low.genes, high.genes):
        raise InputError(f"{where}: the two resolutions must have the same genes in one order.")
    off = abs(_members(parent) @ high.counts - low.counts)
    if off.nnz and off.max() > 0:
        spots, genes = off.nonzero()
        raise InputError(
            f"{where}: children must add up to their parent, but {len(set(spots))} of "
            f"{low.num_spots} parents do not, first in gene {str(low.genes[genes[0]])!r}."
        )
