"""The space-filling order, and tiles that hold the graph they were cut from, edge for edge."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import Graph, knn_graph
from stfm_jax.ops.tiles import edge_list, hilbert_order, tile

K = 6


def lattice(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 1.0


def random_points(n=230):
    return np.random.default_rng(0).uniform(0, 15.0, (n, 2))


def holey_lattice():
    """Hexagons with holes: ties, and degrees that vary."""
    row, column = np.divmod(np.arange(16 * 18), 18)
    points = np.stack([column + 0.5 * (row % 2), np.sqrt(0.75) * row], axis=1)
    return points[np.random.default_rng(1).uniform(size=len(points)) > 0.15]


POINTS = {"random": random_points, "holey lattice": holey_lattice}


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_hilbert_order_is_a_permutation(seed, n):
    order = hilbert_order(np.random.default_rng(seed).normal(size=(n, 2)))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("side", [2, 4, 16, 64])
def test_on_a_grid_every_step_is_to_a_neighbour(side):
    rng = np.random.default_rng(0)
    coords = rng.permutation(lattice(side))
    steps = np.diff(coords[hilbert_order(coords)], axis=0)
    np.testing.assert_array_equal(np.abs(steps).sum(axis=1), 1.0)


def test_runs_of_the_order_are_compact():
    """Tiles of random points have few neighbours outside: their outline is short."""
    coords = np.random.default_rng(0).uniform(0, 1.0, (4096, 2))
    coords = coords[hilbert_order(coords)]
    extents = np.ptp(coords.reshape(64, 64, 2), axis=1)  # each an eighth of the square wide
    assert np.median(extents) < 0.15 and extents.max() < 0.3


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, (300.0, -7e3)), (0.01, (0.0, 0.0))])
def test_neither_shift_nor_scale_change_the_order(points, scale, shift):
    coords = POINTS[points]()
    np.testing.assert_array_equal(hilbert_order(scale * coords + shift), hilbert_order(coords))


@pytest.mark.parametrize(
    ("coords", "expected"),
    [
        (np.array([[3.0, 4.0]]), [0]),
        (np.ones((5, 2)), range(5)),  # spots on top of one another keep their order
        (np.stack([np.arange(9.0), np.full(9, 2.0)], axis=1), range(9)),
    ],
    ids=["one spot", "one place", "one line"],
)
def test_degenerate_coordinates_have_an_order(coords, expected):
    np.testing.assert_array_equal(hilbert_order(coords), expected)


def graph_of(points):
    coords = POINTS[points]()
    coords = coords[hilbert_order(coords)]
    graph = knn_graph(coords, K)
    return graph, edge_geometry(coords, graph), len(coords)


@pytest.mark.parametrize("size", [16, 32, 64, 256, 384])
@pytest.mark.parametrize("points", POINTS)
def test_tiles_give_back_the_graph(points, size):
    """Every edge once, in order and with its own geometry; padding nowhere else than masked."""
    graph, geometry, n = graph_of(points)
    rows = -(-n // size) * size
    tiles = tile(graph, geometry, rows, size, np.float64)
    assert (tiles.num_tiles, tiles.size) == (rows // size, size)
    edges = edge_list(tiles)
    assert edges.senders.dtype == edges.receivers.dtype == np.int32
    assert (np.diff(edges.receivers) >= 0).all()  # padding included: reductions rely on it
    assert 0 <= edges.senders.min() and edges.senders.max() < rows
    mask = np.asarray(edges.mask)
    np.testing.assert_array_equal(edges.senders[mask], graph.senders)
    np.testing.assert_array_equal(edges.receivers[mask], graph.receivers)
    for name in geometry._fields:
        table = getattr(tiles.geometry, name)
        np.testing.assert_array_equal(table[tiles.mask], getattr(geometry, name), err_msg=name)
        np.testing.assert_array_equal(table[~tiles.mask], 0.0)


@pytest.mark.parametrize("points", POINTS)
def test_empty_tiles_hold_nothing(points):
    graph, geometry, _ = graph_of(points)
    tiles = tile(graph, geometry, 512, 64)
    assert (tiles.mask.any(axis=(1, 2)) == [True] * 4 + [False] * 4).all()
    np.testing.assert_array_equal(np.asarray(edge_list(tiles).mask).sum(), len(graph.senders))


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("points", POINTS)
def test_a_halo_is_the_senders_outside_once_each(points, size):
    graph, geometry, n = graph_of(points)
    rows = -(-n // size) * size
    tiles = tile(graph, geometry, rows, size)
    for i in range(tiles.num_tiles):
        senders = graph.senders[graph.receivers // size == i]
        outside = np.unique(senders[senders // size != i])
        assert len(outside) > 0
        np.testing.assert_array_equal(tiles.halo[i, : len(outside)], outside)
        used = tiles.senders[i][tiles.mask[i]]
        assert set(used[used >= size] - size) == set(range(len(outside)))


def test_a_single_tile_has_no_halo():
    graph, geometry, n = graph_of("random")
    tiles = tile(graph, geometry, 256, 256)
    assert tiles.halo.shape == (1, 0)
    np.testing.assert_array_equal(tiles.senders[tiles.mask], graph.senders)
    assert n < 256


def test_tiles_without_edges_between_have_no_halo():
    near = knn_graph(lattice(4), K)
    graph = Graph(*(np.concatenate([a, a + 16]) for a in near))
    coords = np.concatenate([lattice(4), lattice(4) + 100.0])
    tiles = tile(graph, edge_geometry(coords, graph), 32, 16)
    assert tiles.halo.shape == (2, 0)
    np.testing.assert_array_equal(tiles.senders[0], tiles.senders[1])
    np.testing.assert_array_equal(edge_list(tiles).senders[tiles.mask.ravel()], graph.senders)


def cut(senders, receivers, rows, size):
    """Tiles of any graph, whatever its geometry."""
    graph = Graph(np.asarray(senders, np.int32), np.asarray(receivers, np.int32))
    coords = np.random.default_rng(0).normal(size=(rows, 2))
    return graph, tile(graph, edge_geometry(coords, graph), rows, size)


@pytest.mark.parametrize(
    ("count", "width"),
    [(0, 0), (1, 32), (32, 32), (33, 64), (256, 256), (257, 384), (384, 384), (500, 512)],
)
def test_halo_widths_are_few(count, width):
    """The widest halo decides, in steps of 32 and then of 128."""
    size = 512
    senders = np.concatenate([size + np.arange(count), [0]])  # tile 0 looks at tile 1, 1 at row 0
    receivers = np.concatenate([np.arange(count), [size]])
    graph, tiles = cut(senders, receivers, 2 * size, size)
    assert tiles.halo.shape == (2, max(width, 32))
    assert tiles.halo[1, 0] == 0
    np.testing.assert_array_equal(edge_list(tiles).senders[tiles.mask.ravel()], graph.senders)


@pytest.mark.parametrize(
    ("degree", "width"),
    [(0, 1), (1, 1), (8, 8), (11, 11), (12, 12), (13, 16), (16, 16), (29, 32), (32, 32), (33, 64)],
)
def test_table_widths_are_few(degree, width):
    """The largest degree decides, rounded up where ties make it large."""
    graph, tiles = cut(np.arange(degree), np.full(degree, 70), 128, 64)
    assert tiles.senders.shape == tiles.mask.shape == (2, 64, width)
    assert tiles.geometry.pca.shape == (2, 64, width, 2)
    np.testing.assert_array_equal(edge_list(tiles).senders[tiles.mask.ravel()], graph.senders)
    assert tiles.mask[1, 6].sum() == degree


def test_types_are_those_of_the_device():
    graph, geometry, _ = graph_of("random")
    tiles = tile(graph, geometry, 256, 64)
    assert {str(a.dtype) for a in jax.tree.leaves(tiles.geometry)} == {"float32"}
    assert (tiles.halo.dtype, tiles.senders.dtype, tiles.mask.dtype) == (np.int32, np.int32, bool)


def test_edge_list_is_traced():
    """It is called within jitted functions."""
    graph, geometry, _ = graph_of("holey lattice")
    tiles = tile(graph, geometry, 256, 32)
    traced, eager = jax.jit(edge_list)(tiles), edge_list(tiles)
    jax.tree.map(np.testing.assert_array_equal, traced, eager)
