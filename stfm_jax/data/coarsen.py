"""Coarser spots out of finer ones: parents, whose counts are the sums of their children's.

Groups of points of the slide's lattice, squares of a size, or parents that a file names. At the
edge of the tissue a parent has fewer children. And the way back: places of the children that
parents on a lattice would have.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import scipy.sparse as sp

from stfm_jax.data import labels
from stfm_jax.data.lattice import find_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_FEW = 0.1  # share of parents, or children, that may be dropped [ours]
# Steps from the centre of a hexagonal flower by (i + 5 j) mod 7, which is 0 at the centres.
_FLOWER = np.array([(0, 0), (1, 0), (0, -1), (1, -1), (-1, 1), (0, 1), (-1, 0)])
GROUPS = {"2x2": 4, "4x4": 16, "hex7": 7}  # children of a whole parent
NAMED, SIZED = "named", "size"  # other ways to group: by obs['parent'], by squares of a size
_FLOWER_STEPS = np.array([(2, 1), (-1, 3)])  # between neighbouring flowers, in children's steps


@dataclasses.dataclass(frozen=True)
class Pair:
    """One tissue at two resolutions: P parents and n children, G genes.

    Construction validates: every parent has children, and its counts are their sum where the
    children's are known.
    """

    low: Slide  # the parents, with counts
    high: Slide  # the children, with or without counts
    parent: np.ndarray  # [n] int64, row of the child's parent

    def __post_init__(self):
        _validate(self)

    @property
    def offset_um(self) -> np.ndarray:
        """From its parent to each child, [n, 2]."""
        return self.high.coords_um - self.low.coords_um[self.parent]

    @property
    def num_children(self) -> np.ndarray:
        """Number of children of every parent, [P]."""
        return np.bincount(self.parent, minlength=self.low.num_spots)

    def table(self) -> np.ndarray:
        """Rows of every parent's children, [P, most], in their order; -1 where there are fewer."""
        order, children = np.argsort(self.parent, kind="stable"), self.num_children
        first = np.cumsum(children) - children
        place = np.arange(len(order)) - first[self.parent[order]]
        table = np.full((len(children), children.max()), -1)
        table[self.parent[order], place] = order
        return table

    def mean_of_children(self, values: np.ndarray) -> np.ndarray:
        """Means [P, k] of values [n, k] of the children, by parent."""
        return _members(self.parent) @ values / self.num_children[:, None]

    def middle(self, most: int) -> np.ndarray:
        """Rows of so many parents about the middle of the tissue, ascending; of all, if fewer."""
        coords = self.low.coords_um
        far = ((coords - np.median(coords, axis=0)) ** 2).sum(axis=1)
        return np.sort(np.argsort(far, kind="stable")[:most])

    def of_parents(self, index: np.ndarray) -> Pair:
        """Some of the parents [m], ascending, with their children."""
        row_of = np.full(self.low.num_spots, -1)
        row_of[index] = np.arange(len(index))
        children = np.flatnonzero(row_of[self.parent] >= 0)
        low, high = self.low.subset(index), self.high.subset(children)
        return Pair(low, high, row_of[self.parent[children]])


def coarsened(
    slide: Slide, group: str, shift: tuple[int, int] = (0, 0), size_um: float = 0.0
) -> Pair:
    """The pair that a config's `coarsen` section makes of a slide with counts.

    Args:
      slide: the children.
      group: of GROUPS; NAMED: the slide's own `parent`; SIZED: squares of `size_um`.
      shift: of groups of the lattice.
      size_um: side of the squares.

    Raises:
      InputError: it cannot be done.
    """
    if group == SIZED:
        return by_size(slide, size_um)
    if group != NAMED:
        return by_lattice(slide, group, shift)
    if slide.parent is None:
        raise InputError(
            f"{slide.where}: expected the names of its spots' parents in obs['parent']."
        )
    return by_name(slide, slide.parent)


def subdivided(low: Slide, group: str) -> Pair:
    """The children, without counts, of parents on a lattice that were grouped as in `by_lattice`.

    Raises:
      InputError: the parents lie on no lattice, or on one of another kind.
    """
    if group not in GROUPS:
        raise InputError(
            f"{low.where}: where its children lie does not follow from groups by {group!r}; give a "
            "file of them, with obs['parent'], by --config.predict.children."
        )
    lattice, _ = find_lattice(low.coords_um, low.where)
    if group == "hex7":
        _require_hex(lattice.kind, low.where)
        steps = _FLOWER @ np.linalg.inv(_FLOWER_STEPS)
    else:
        side = int(group[0])
        steps = (np.indices((side, side)).reshape(2, -1).T - (side - 1) / 2) / side
    s = len(steps)
    parent = np.repeat(np.arange(low.num_spots), s)
    names = [f"{name}_{k}" for name in low.barcodes for k in range(s)]
    coords = (low.coords_um[:, None] + steps @ lattice.basis).reshape(-1, 2)
    return Pair(low, _without_counts(low, np.array(names), coords), parent)


def with_children(low: Slide, high: Slide, strict: bool = False) -> Pair:
    """Parents and children of two files, the children naming their `parent`.

    Few of either that have none of the other are dropped, and a line says so: masks of tissue at
    two resolutions differ at its edge.

    Args:
      low, high: parents and children.
      strict: such are an error.

    Raises:
      InputError: many of either have none of the other; counts of both that do not add up.
    """
    if high.parent is None:
        raise InputError(
            f"{high.where}: expected the names of its spots' parents in obs['parent']."
        )
    named, of = np.unique(high.parent, return_inverse=True)
    parent = labels.places(named, low.barcodes, high.where)[of]
    lost = np.flatnonzero(parent < 0)
    if len(lost) > (0 if strict else _FEW * high.num_spots):
        raise InputError(
            f"{high.where}: {len(lost)} of {high.num_spots} children have no parent in "
            f"{low.where}, first {str(high.barcodes[lost[0]])!r}, whose obs['parent'] is "
            f"{str(high.parent[lost[0]])!r}; drop them, or correct it."
        )
    kept = np.unique(parent[parent >= 0])
    childless = low.num_spots - len(kept)
    if childless > (0 if strict else _FEW * low.num_spots):
        raise InputError(
            f"{low.where} and {high.where}: {childless} of {low.num_spots} parents have no "
            "children; drop them."
        )
    if len(lost) or childless:
        _LOG.warning(
            "%s: %d of %d parents have no children in %s, and %d of %d children no parent; these "
            "are dropped (--config.data.strict=True refuses them)",
            *(low.where, childless, low.num_spots, high.where, len(lost), high.num_spots),
        )
        there = np.flatnonzero(parent >= 0)
        low, high, parent = low.subset(kept), high.subset(there), parent[there]
        parent = np.searchsorted(kept, parent)
    return Pair(low, high, parent)


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
        _require_hex(lattice.kind, slide.where)
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


def _require_hex(kind: str, where: str) -> None:
    if kind != "hex":
        raise InputError(f"{where}: its lattice is {kind}, groups of hex7 need hex.")


def _without_counts(slide: Slide, names: np.ndarray, coords_um: np.ndarray) -> Slide:
    """Other spots of the same tissue, of which only the places are known."""
    um_per_unit = slide.um_per_px or 1.0
    return dataclasses.replace(
        slide, barcodes=names, coords_um=coords_um, coords_in=coords_um / um_per_unit,
        counts=None, genes=None, features=None, encoder=None, widths=(), patches=None,
        registered_um=None, parent=None, domains=None,
    )  # fmt: skip


def _gathered(slide: Slide, group_of: np.ndarray, middle: np.ndarray) -> Pair:
    """Parents by group [n, 2] of integers; middle [n, 2] of each spot's group, micrometres."""
    groups, one, parent = np.unique(group_of, axis=0, return_index=True, return_inverse=True)
    first, second = groups.astype(str).T
    names = np.char.add(np.char.add(first, "x"), second)
    return _summed(slide, parent.ravel(), names, middle[one])


def _summed(slide: Slide, parent: np.ndarray, names: np.ndarray, coords_um: np.ndarray) -> Pair:
    if slide.counts is None:
        raise InputError(f"{slide.where}: has no counts, so its spots cannot be added up.")
    counts = (_members(parent) @ slide.counts).tocsr()
    low = _without_counts(slide, names, coords_um)
    return Pair(dataclasses.replace(low, counts=counts, genes=slide.genes), slide, parent)


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
    if low.counts is None:
        raise InputError(f"{low.where}: has no counts to split; give raw counts in X.")
    if high.counts is None:
        return
    if not np.array_equal(low.genes, high.genes):
        raise InputError(f"{where}: the two resolutions must have the same genes in one order.")
    off = abs(_members(parent) @ high.counts - low.counts)
    if off.nnz and off.max() > 0:
        spots, genes = off.nonzero()
        raise InputError(
            f"{where}: children must add up to their parent, but {len(set(spots))} of "
            f"{low.num_spots} parents do not, first in gene {str(low.genes[genes[0]])!r}."
        )
