"""Edge geometry: what a rotated, mirrored or moved slide may change, which is signs alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfm_jax.ops.frames import BLEND_GAP, edge_geometry
from stfm_jax.ops.neighbors import Graph, knn_graph

K = 8


def random_points(seed=0, n=200):
    return np.random.default_rng(seed).uniform(0, np.sqrt(n), (n, 2))


def square_lattice(side=12):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 1.0


def hexagonal_lattice(side=12):
    row, column = np.divmod(np.arange(side * side), side)
    return np.stack([column + 0.5 * (row % 2), np.sqrt(0.75) * row], axis=1)


POINTS = {
    "random": random_points(),
    "square": square_lattice(),
    "hexagonal": hexagonal_lattice(),
    "one line": np.stack([np.arange(40.0), np.zeros(40)], axis=1),
}


def moved(coords, radians, mirror, shift):
    rotation = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    return (coords * [1, -1 if mirror else 1]) @ rotation.T + shift


def geometry_of(coords):
    graph = knn_graph(coords, K)
    return graph, edge_geometry(coords, graph)


@given(
    name=st.sampled_from(sorted(POINTS)),
    radians=st.floats(-7.0, 7.0),
    mirror=st.booleans(),
    shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
)
@settings(max_examples=60, deadline=None)
def test_moving_a_slide_changes_signs_alone(name, radians, mirror, shift):
    graph, base = geometry_of(POINTS[name])
    other_graph, other = geometry_of(moved(POINTS[name], radians, mirror, shift))
    np.testing.assert_array_equal(graph.senders, other_graph.senders)
    np.testing.assert_array_equal(graph.receivers, other_graph.receivers)
    np.testing.assert_allclose(other.distance, base.distance, rtol=1e-9)
    np.testing.assert_allclose(other.blend, base.blend, atol=1e-9)
    np.testing.assert_allclose(other.edge[:, 0], base.edge[:, 0], atol=1e-9)
    sign = -1.0 if mirror else 1.0
    np.testing.assert_allclose(other.edge[:, 1], sign * base.edge[:, 1], atol=1e-9)
    # Where the eigengap closes the axes are noise, and the blend must hide them.
    for axis in range(2):
        change = np.abs(other.pca[:, axis]) - np.abs(base.pca[:, axis])
        np.testing.assert_allclose(base.blend * change, 0.0, atol=1e-9)
    assert_one_sign_per_receiver(graph, base.pca, other.pca, base.blend > 1e-6)


def assert_one_sign_per_receiver(graph, pca, other, trusted):
    """All edges of a receiver flip together: the four frames are frames, not edge-wise signs."""
    for axis in range(2):
        product = pca[:, axis] * other[:, axis]
        clear = trusted & (np.abs(product) > 1e-6)
        n = graph.receivers.max() + 1
        positive = np.bincount(graph.receivers[clear & (product > 0)], minlength=n)
        negative = np.bincount(graph.receivers[clear & (product < 0)], minlength=n)
        assert (np.minimum(positive, negative) == 0).all()


def test_closed_form_equals_eigh():
    coords = random_points(seed=3)
    graph, geometry = geometry_of(coords)
    for i in range(len(coords)):
        mine = graph.receivers == i
        r = coords[graph.senders[mine]] - coords[i]
        centred = r - r.mean(axis=0)
        values, vectors = np.linalg.eigh(centred.T @ centred / mine.sum())
        projected = centred @ vectors[:, ::-1]
        np.testing.assert_allclose(np.abs(geometry.pca[mine]), np.abs(projected), atol=1e-7)
        np.testing.assert_allclose(geometry.distance[mine], np.hypot(*r.T), rtol=1e-12)
        x = min((values[1] - values[0]) / values.sum() / BLEND_GAP, 1.0)
        np.testing.assert_allclose(geometry.blend[mine], x * x * (3 - 2 * x), atol=1e-12)
        along = r / np.hypot(*r.T)[:, None]
        np.testing.assert_allclose(geometry.edge[mine, 0], (centred * along).sum(1), atol=1e-12)
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        np.testing.assert_allclose(geometry.edge[mine, 1], (centred * across).sum(1), atol=1e-12)


@pytest.mark.parametrize("name", ["square", "hexagonal"])
def test_no_trust_in_pca_inside_a_lattice(name):
    coords = moved(POINTS[name], 0.61, False, (17.0, -4.0))
    graph, geometry = geometry_of(coords)
    inside = (graph.degrees(len(coords)) == {"square": 8, "hexagonal": 12}[name]).nonzero()[0]
    inside = [
        i for i in inside if np.allclose(coords[graph.senders[graph.receivers == i]].mean(0),
                                         coords[i])
    ]  # fmt: skip
    assert len(inside) >= 50
    of_inside = np.isin(graph.receivers, inside)
    assert geometry.blend[of_inside].max() < 1e-12
    # The edge's own frame has nothing across it there, and all of its length along.
    np.testing.assert_allclose(geometry.edge[of_inside, 1], 0.0, atol=1e-10)
    np.testing.assert_allclose(geometry.edge[of_inside, 0], geometry.distance[of_inside])
    # At the border neighbourhoods have a direction, and PCA is trusted.
    assert geometry.blend.max() == 1.0


def test_blend_rises_with_the_eigengap():
    blends = []
    for stretch in (1.0, 1.01, 1.03, 1.06, 1.2):
        coords = square_lattice() * [stretch, 1.0]
        graph = knn_graph(square_lattice(), K)  # the same neighbours throughout
        centre = graph.receivers == 12 * 6 + 6
        blends.append(edge_geometry(coords, graph).blend[centre][0])
    assert blends[0] < 1e-12 and blends[-1] == 1.0
    assert (np.diff(blends) > 0).all()


def test_small_noise_on_a_lattice_moves_the_blended_geometry_little():
    """Continuity: no jump between a perfect lattice and one known to a micrometre."""
    coords = square_lattice()
    graph, base = geometry_of(coords)
    noisy = coords + np.random.default_rng(0).normal(0.0, 1e-6, coords.shape)
    other = edge_geometry(noisy, graph)
    np.testing.assert_allclose(other.blend, base.blend, atol=1e-4)
    np.testing.assert_allclose(other.edge[:, 0], base.edge[:, 0], atol=1e-4)
    np.testing.assert_allclose(np.abs(other.edge[:, 1]), np.abs(base.edge[:, 1]), atol=1e-4)


def test_one_neighbour_is_its_own_centre_and_none_is_no_matter():
    graph = Graph(np.array([1, 2], np.int32), np.array([0, 1], np.int32))
    found = edge_geometry(np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]), graph)
    np.testing.assert_allclose(found.distance, [5.0, 1.0])
    np.testing.assert_array_equal(found.pca, 0.0)
    np.testing.assert_array_equal(found.edge, 0.0)
    np.testing.assert_array_equal(found.blend, 0.0)
