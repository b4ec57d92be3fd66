"""Tie-complete neighbours against brute force, on random points and on lattices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfm_jax.errors import InputError
from stfm_jax.ops import neighbors
from stfm_jax.ops.neighbors import (
    MAX_TIES,
    TIE_TOLERANCE,
    Graph,
    knn_graph,
    median_spacing,
    nearest,
    neighbor_mean,
    spot_tree,
)


def square_lattice(side, pitch=1.0):
    return pitch * np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)


def hexagonal_lattice(side, pitch=1.0):
    row, column = np.divmod(np.arange(side * side), side)
    return pitch * np.stack([column + 0.5 * (row % 2), np.sqrt(0.75) * row], axis=1)


def rotated(coords, degrees):
    a = np.deg2rad(degrees)
    return coords @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def brute_force(coords, k):
    """{(receiver, sender)} by the N x N matrix, ties of the k-th kept."""
    distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    limit = np.sort(distance, axis=1)[:, k - 1] * (1 + TIE_TOLERANCE)
    return set(map(tuple, np.argwhere(distance <= limit[:, None])))


def as_set(graph):
    return set(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))


def assert_sorted_and_simple(graph):
    pairs = np.stack([graph.receivers, graph.senders], axis=1).tolist()
    assert pairs == sorted(pairs) and len(as_set(graph)) == len(pairs)
    assert graph.senders.dtype == graph.receivers.dtype == np.int32


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(10, 80),
    k=st.integers(1, 9),
    dimensions=st.sampled_from([2, 3]),
)
@settings(max_examples=40, deadline=None)
def test_random_points_equal_brute_force(seed, n, k, dimensions):
    coords = np.random.default_rng(seed).uniform(0, 5000.0, (n, dimensions))
    graph = knn_graph(coords, k)
    assert as_set(graph) == brute_force(coords, k)
    assert_sorted_and_simple(graph)
    assert (graph.degrees(n) >= k).all()


@pytest.mark.parametrize("degrees", [0.0, 37.0, 90.0])
@pytest.mark.parametrize(
    ("lattice", "k", "interior"),
    [
        (square_lattice, 4, 4),
        (square_lattice, 5, 8),
        (square_lattice, 7, 8),
        (square_lattice, 8, 8),
        (square_lattice, 9, 12),
        (hexagonal_lattice, 6, 6),
        (hexagonal_lattice, 7, 12),
        (hexagonal_lattice, 8, 12),
        (hexagonal_lattice, 13, 18),
    ],
)
def test_lattice_keeps_whole_shells(lattice, k, interior, degrees):
    side = 11
    coords = rotated(lattice(side, pitch=99.7), degrees) + 1e5
    graph = knn_graph(coords, k)
    assert_sorted_and_simple(graph)
    inside = np.zeros((side, side), bool)
    inside[3:-3, 3:-3] = True
    assert (graph.degrees(len(coords))[inside.ravel()] == interior).all()
    assert (graph.degrees(len(coords)) >= k).all()
    # The graph is that of the lattice as it lies: no rounding noise decides.
    assert as_set(graph) == brute_force(lattice(side), k)


def test_pixel_rounding_breaks_ties_by_distance():
    """Ties are kept within 1e-4 only: beyond, distances are told apart."""
    coords = square_lattice(5)
    coords[13] += [1e-3, 0.0]  # one step to the right of the centre (12), pulled away
    assert 13 not in knn_graph(coords, 3).senders[knn_graph(coords, 3).receivers == 12]
    coords = square_lattice(5)
    coords[13] += [1e-6, 0.0]
    assert 13 in knn_graph(coords, 3).senders[knn_graph(coords, 3).receivers == 12]


def test_smallest_slide_is_complete():
    coords = np.random.default_rng(0).normal(size=(9, 2))
    assert (knn_graph(coords, 8).degrees(9) == 8).all()


def test_include_self_adds_the_spot_itself():
    coords = square_lattice(6)
    without, with_self = knn_graph(coords, 8), knn_graph(coords, 8, include_self=True)
    assert as_set(with_self) == as_set(without) | {(i, i) for i in range(36)}
    assert_sorted_and_simple(with_self)


@pytest.mark.parametrize("n", [1, 8])
def test_too_few_spots(n):
    coords = np.random.default_rng(0).normal(size=(n, 2))
    with pytest.raises(InputError, match=f"{n} spots are too few for 8 .* at least 9"):
        knn_graph(coords, 8)


def ring(num_spots):
    angle = np.linspace(0, 2 * np.pi, num_spots, endpoint=False)
    return np.concatenate([[[0.0, 0.0]], np.stack([np.cos(angle), np.sin(angle)], axis=1)])


def test_a_circle_around_a_spot_is_refused_beyond_the_cap():
    with pytest.raises(InputError, match=r"spot 0 has over 24 neighbours .* degenerate"):
        knn_graph(ring(8 + MAX_TIES + 10), 8)


def test_a_circle_within_the_cap_is_kept():
    spots = 8 + MAX_TIES
    coords = np.concatenate([ring(spots), 50.0 + square_lattice(8)])
    assert knn_graph(coords, 8).degrees(len(coords))[0] == spots


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 37.0])
def test_the_number_searched_at_once_does_not_matter(monkeypatch, include_self, degrees):
    coords = rotated(hexagonal_lattice(9), degrees)  # ties that need the wider search
    coords = np.concatenate([coords, 40.0 + np.random.default_rng(0).uniform(size=(20, 2))])
    whole = knn_graph(coords, 13, include_self)
    monkeypatch.setattr(neighbors, "SPOTS_AT_ONCE", 7)
    for one, other in zip(knn_graph(coords, 13, include_self), whole, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.int32


def test_neighbours_of_some_spots():
    """Receivers count within what was asked for, in its order."""
    coords = np.random.default_rng(0).uniform(size=(60, 2))
    values = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    whole, spots = knn_graph(coords, 5), np.array([40, 3, 59])
    some = nearest(spot_tree(coords, 5), spots, 5)
    for i, spot in enumerate(spots):
        expected = whole.senders[whole.receivers == spot]
        np.testing.assert_array_equal(some.senders[some.receivers == i], expected)
    expected = neighbor_mean(values, whole)[spots]
    np.testing.assert_allclose(neighbor_mean(values, some, 3), expected, rtol=1e-6)


def test_neighbor_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3)).astype(np.float32)
    graph = knn_graph(rng.normal(size=(40, 2)), 5)
    expected = [values[graph.senders[graph.receivers == i]].mean(axis=0) for i in range(40)]
    mean = neighbor_mean(values, graph)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(neighbor_mean(values[:, 0], graph), mean[:, 0], rtol=1e-6)


def test_neighbor_mean_of_spots_without_neighbours_is_zero():
    graph = Graph(np.array([3, 0], np.int32), np.array([1, 1], np.int32))
    values = np.array([[1.0], [9.0], [9.0], [5.0]])
    np.testing.assert_array_equal(neighbor_mean(values, graph), [[0.0], [3.0], [0.0], [0.0]])


def test_neighbor_mean_of_one_neighbour_is_that_neighbour():
    graph = Graph(np.array([2, 0, 1], np.int32), np.array([0, 1, 2], np.int32))
    values = np.array([[1.0], [9.0], [5.0]])
    np.testing.assert_array_equal(neighbor_mean(values, graph), [[5.0], [1.0], [9.0]])


def test_median_spacing():
    assert median_spacing(rotated(hexagonal_lattice(7, 100.0), 12.0)) == pytest.approx(100.0)


def test_one_spot_alone_has_itself_at_most():
    place = np.array([[3.0, 4.0]])
    assert len(knn_graph(place, 0).senders) == 0
    graph = knn_graph(place, 0, include_self=True)
    assert (graph.senders.tolist(), graph.receivers.tolist()) == ([0], [0])
