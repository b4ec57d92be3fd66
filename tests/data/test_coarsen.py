"""Parents and children: on lattices however they lie, by size, by name."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from lattices import STEPS, points
from scipy.spatial import cKDTree

from stfm_jax.data import coarsen
from stfm_jax.data.lattice import find_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError


def turned(coords, degrees):
    a = np.deg2rad(degrees)
    return coords @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def tissue(kind="square", degrees=0.0, side=12, jitter=0.05, lost=0.1, seed=0):
    """A slide on a lattice with holes, and the points [n, 2] its spots were put at."""
    rng = np.random.default_rng(seed)
    index = points(side, lost, rng)
    pitch = np.linalg.norm(STEPS[kind][0])
    coords = index @ STEPS[kind] + jitter * pitch * rng.uniform(-1, 1, (len(index), 2))
    slide = Slide(
        name="S",
        barcodes=np.array([f"b{i}" for i in range(len(index))]),
        coords_um=turned(coords, degrees) + np.array([3456.0, -77.0]),
        counts=sp.csr_matrix(rng.poisson(2.0, (len(index), 5)).astype(np.float32)),
        genes=np.array([f"g{i}" for i in range(5)]),
    )
    return slide, index


@pytest.mark.parametrize("degrees", [0.0, 17.0, 44.0, 133.0])
@pytest.mark.parametrize("kind", STEPS)
def test_the_lattice_is_found_however_it_lies(kind, degrees):
    slide, index = tissue(kind, degrees)
    lattice, found = find_lattice(slide.coords_um, "S")
    assert lattice.kind == kind and (found.min(axis=0) == 0).all()
    pitch = np.linalg.norm(STEPS[kind][0])
    np.testing.assert_allclose(np.linalg.norm(lattice.basis, axis=1), pitch, rtol=5e-3)
    off = np.linalg.norm(lattice.points(found) - slide.coords_um, axis=1)
    assert off.max() < 0.12 * pitch
    # Up to turns of the lattice: distances between points are kept.
    ours, theirs = lattice.points(found), turned(index @ STEPS[kind], degrees)
    np.testing.assert_allclose(
        np.linalg.norm(ours - ours[0], axis=1),
        np.linalg.norm(theirs - theirs[0], axis=1),
        atol=0.1 * pitch,
    )


def test_random_places_lie_on_no_lattice():
    coords = np.random.default_rng(0).uniform(0, 1000, (80, 2))
    with pytest.raises(InputError, match=r"S: its 80 spots lie on no.*obs\['parent'\]"):
        find_lattice(coords, "S")


@pytest.mark.parametrize(
    ("kind", "group", "reach"),
    [("square", "2x2", 0.75), ("square", "4x4", 2.2), ("hex", "hex7", 1.1)],
)
def test_children_lie_around_their_parent(kind, group, reach):
    slide, _ = tissue(kind, 17.0, side=17, lost=0.15)
    pair = coarsen.by_lattice(slide, group)
    np.testing.assert_array_equal(pair.low.counts.sum(axis=0), slide.counts.sum(axis=0))
    pitch = np.linalg.norm(STEPS[kind][0])
    assert np.linalg.norm(pair.offset_um, axis=1).max() < (reach + 0.15) * pitch
    children = pair.num_children
    assert children.min() >= 1 and children.max() == coarsen.GROUPS[group]
    table = pair.table()
    assert sorted(table[table >= 0]) == list(range(slide.num_spots))
    for row, kids in enumerate(table):
        np.testing.assert_array_equal(pair.parent[kids[kids >= 0]], row)
        summed = slide.counts[kids[kids >= 0]].sum(axis=0)
        np.testing.assert_array_equal(pair.low.counts[[row]].todense(), summed)


def test_whole_groups_of_four_are_two_by_two():
    slide, _ = tissue(lost=0.0, jitter=0.0)
    pair = coarsen.by_lattice(slide)
    assert pair.low.num_spots == 36 and (pair.num_children == 4).all()
    np.testing.assert_allclose(np.abs(pair.offset_um), 100.0, atol=1e-6)
    moved = coarsen.by_lattice(slide, shift=(1, 0))
    assert moved.low.num_spots == 42 and sorted(set(moved.num_children)) == [2, 4]


@pytest.mark.parametrize(("kind", "group"), [("square", "2x2"), ("square", "4x4"), ("hex", "hex7")])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (1, 2), (-3, 1)])
def test_a_whole_group_lies_around_its_parent_however_it_is_moved(kind, group, shift):
    slide, _ = tissue(kind, 17.0, lost=0.0, jitter=0.0)
    pair = coarsen.by_lattice(slide, group, shift)
    whole = np.flatnonzero(pair.num_children == coarsen.GROUPS[group])
    assert len(whole) > 3
    for row in whole:
        middle = slide.coords_um[pair.parent == row].mean(axis=0)
        np.testing.assert_allclose(pair.low.coords_um[row], middle, atol=1e-6)


def test_an_edge_parent_keeps_its_place():
    """Its centre is that of the whole group, whichever children there are."""
    slide, _ = tissue(lost=0.0, jitter=0.0)
    whole = coarsen.by_lattice(slide)
    part = coarsen.by_lattice(slide.subset(np.arange(slide.num_spots) != 0))
    np.testing.assert_allclose(part.low.coords_um, whole.low.coords_um, atol=1e-6)


def test_groups_by_size_and_by_name():
    slide, _ = tissue()
    by_size = coarsen.by_size(slide, 400.0)
    assert np.abs(by_size.offset_um).max() <= 200.0
    names = by_size.low.barcodes[by_size.parent]
    by_name = coarsen.by_name(slide, names)
    np.testing.assert_array_equal(by_name.low.barcodes[by_name.parent], names)
    assert (by_name.low.counts != by_size.low.counts).nnz == 0
    with pytest.raises(InputError, match=r"1 of .* spots have no parent"):
        coarsen.by_name(slide, np.where(np.arange(len(names)) == 3, "", names))


def test_flowers_need_a_hexagonal_lattice():
    with pytest.raises(InputError, match="its lattice is square, groups of hex7 need hex"):
        coarsen.by_lattice(tissue()[0], "hex7")


def test_a_pair_that_does_not_add_up_is_refused():
    pair = coarsen.by_lattice(tissue()[0])
    counts = pair.low.counts.copy()
    counts[4, 2] += 1
    with pytest.raises(InputError, match=r"1 of .* parents do not, first in gene 'g2'"):
        dataclasses.replace(pair, low=dataclasses.replace(pair.low, counts=counts))
    orphaned = pair.parent.copy()
    orphaned[0] = -1
    with pytest.raises(InputError, match="some children have none"):
        dataclasses.replace(pair, parent=orphaned)
    emptied = np.where(pair.parent == 0, 1, pair.parent)
    with pytest.raises(InputError, match=r"1 of .* parents have no children"):
        dataclasses.replace(pair, parent=emptied)


@pytest.mark.parametrize(("group", "kind"), [("2x2", "square"), ("4x4", "square"), ("hex7", "hex")])
def test_parents_without_children_get_their_places_back(group, kind):
    """Of whole groups: the places that children had, and which parent each belongs to."""
    slide, _ = tissue(kind, 20.0, side=30, jitter=0.0, lost=0.02)
    pair = coarsen.by_lattice(slide, group)
    whole = np.flatnonzero(pair.num_children == coarsen.GROUPS[group])
    pair = pair.of_parents(whole)
    again = coarsen.subdivided(pair.low, group)
    distance, row = cKDTree(again.high.coords_um).query(pair.high.coords_um)
    assert distance.max() < 1e-3 and len(set(row)) == len(row) == again.high.num_spots
    np.testing.assert_array_equal(again.parent[row], pair.parent)
    assert again.high.counts is None


def test_children_of_another_file_find_their_parents():
    pair = coarsen.by_lattice(tissue()[0])
    named = dataclasses.replace(pair.high, parent=pair.low.barcodes[pair.parent])
    np.testing.assert_array_equal(coarsen.with_children(pair.low, named).parent, pair.parent)
    with pytest.raises(InputError, match=r"1 of .* children have no parent .* 'nobody'"):
        names = named.parent.astype("U9")
        names[2] = "nobody"
        coarsen.with_children(pair.low, dataclasses.replace(named, parent=names), strict=True)
    bare = dataclasses.replace(named, counts=None, genes=None)
    lost = bare.subset(np.flatnonzero(pair.parent != 4))
    fewer = coarsen.with_children(pair.low, lost)  # masks that differ by one parent
    assert fewer.low.num_spots == pair.low.num_spots - 1
    np.testing.assert_array_equal(fewer.low.barcodes[fewer.parent], lost.parent)
    with pytest.raises(InputError, match="1 of 36 parents have no children"):
        coarsen.with_children(pair.low, lost, strict=True)
    half = bare.subset(np.flatnonzero(pair.parent % 2 == 0))
    with pytest.raises(InputError, match="18 of 36 parents have no children"):
        coarsen.with_children(pair.low, half)


@pytest.mark.parametrize("cell", [(43.0, 48.0), (86.0, 48.0), (96.0, 43.0), (30.0, 80.0)])
@pytest.mark.parametrize("turned", [0.0, 0.4])
def test_children_of_centred_rectangles(cell, turned):
    """The staggered array of Spatial Transcriptomics, neither square nor hexagonal."""
    rng = np.random.default_rng(5)
    corners = np.stack(np.meshgrid(np.arange(25), np.arange(25)), -1).reshape(-1, 2)
    points = np.concatenate([corners, corners + 0.5]) * cell
    points = points[rng.uniform(size=len(points)) > 0.1] + rng.normal(0, 0.5, 2)
    turn = np.array([[np.cos(turned), np.sin(turned)], [-np.sin(turned), np.cos(turned)]])
    points = points @ turn + 300.0
    names = np.arange(len(points)).astype(str)
    low = Slide("S", names, points, counts=sp.csr_matrix(np.ones((len(points), 1))), genes=["g"])
    high = coarsen.subdivided(low, "2x2").high
    apart = cKDTree(np.concatenate([high.coords_um])).query(high.coords_um, k=2)[0][:, 1]
    half = cKDTree(points).query(points, k=2)[0][:, 1].min() / 2
    np.testing.assert_allclose(np.median(apart), half, rtol=0.02)
    assert apart.min() > 0.9 * half  # children of neighbours make one lattice, twice as fine


def test_the_config_says_how():
    slide, _ = tissue()
    named = dataclasses.replace(slide, parent=np.repeat(["a", "b"], [10, slide.num_spots - 10]))
    assert list(coarsen.coarsened(named, "named").low.barcodes) == ["a", "b"]
    one = coarsen.coarsened(slide, "size", size_um=1e6)
    assert one.low.num_spots == 1
    with pytest.raises(InputError, match=r"obs\['parent'\]"):
        coarsen.coarsened(slide, "named")
    with pytest.raises(InputError, match=r"--config\.predict\.children"):
        coarsen.subdivided(one.low, "size")


def test_the_middle_of_the_tissue():
    """Nearest to the median of the parents, by any direction; rows of the table stay in order."""
    slide, _ = tissue(jitter=0.0, lost=0.0)
    pair = coarsen.by_lattice(slide, "2x2")
    coords = pair.low.coords_um
    away = np.linalg.norm(coords - np.median(coords, axis=0), axis=1)
    found = pair.middle(12)
    assert len(found) == 12 and (np.diff(found) > 0).all()
    assert away[found].max() <= np.delete(away, found).min()
    assert list(pair.middle(10**6)) == list(range(len(coords)))


def test_labels_are_the_childrens():
    slide, _ = tissue()
    labels = np.array(["tumour", "stroma"])[np.arange(slide.num_spots) % 2]
    pair = coarsen.by_lattice(dataclasses.replace(slide, domains=labels))
    assert pair.low.domains is None
    np.testing.assert_array_equal(pair.high.domains, labels)
