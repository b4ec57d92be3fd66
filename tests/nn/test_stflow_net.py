"""The network over tiles against its definition, one edge list and segment operations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.nn.stflow_net import STFlowNet
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.ops.tiles import hilbert_order, tile

F, G, K = 12, 5, 6
NETWORK = STFlowNet(
    G, width=16, num_blocks=2, heads=2, dropout=0.3, feature_noise=0.5, feature_dropout=0.2,
    zero_init=False,
)  # fmt: skip


def holey_lattice(rng):
    """A hexagonal lattice with spots missing: many ties, lists of varying length."""
    rows, columns = np.mgrid[:16, :18]
    points = np.stack([columns + 0.5 * (rows % 2), rows * np.sqrt(0.75)], axis=-1).reshape(-1, 2)
    return points[rng.uniform(size=len(points)) > 0.15]


@pytest.fixture(scope="module")
def slide():
    rng = np.random.default_rng(0)
    coords = holey_lattice(rng)
    coords = coords[hilbert_order(coords)]
    n = len(coords)
    params = jax.jit(NETWORK.init, static_argnums=1)(jax.random.key(0), F)
    params = jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape), params)
    return {
        "coords": coords,
        "params": params,
        "x": rng.normal(size=(n, G)),
        "t": rng.uniform(size=n),
        "features": rng.normal(size=(n, F)),
    }


def run(slide, attention, size, rows, train, cached=False, dtype=np.float64, gradient=True):
    """Output, or output and gradients, over `rows` rows in tiles of `size`; of the first n rows."""
    network = dataclasses.replace(NETWORK, attention=attention)
    coords, n = slide["coords"], len(slide["coords"])
    graph = knn_graph(coords, K)
    tiles = tile(graph, edge_geometry(coords, graph), rows, size, dtype)
    pad = lambda a: np.pad(a, [(0, rows - n)] + [(0, 0)] * (a.ndim - 1)).astype(dtype)  # noqa: E731
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(rows))
    keys = keys if train else None

    def loss(params, x):
        tokens = network.encode_features(params, pad(slide["features"]), keys)
        features = network.encode_edges(params, tiles) if cached else None
        y = network.denoise(params, x, pad(slide["t"]), tokens, tiles, features, keys)[:n]
        return jnp.sum(jnp.sin(y)), y

    params = jax.tree.map(lambda a: a.astype(dtype), slide["params"])
    if not gradient:
        return jax.jit(loss)(params, pad(slide["x"]))[1]
    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), (by_params, by_x) = gradients(params, pad(slide["x"]))
    return y, by_params, by_x[:n]


@pytest.mark.parametrize(("size", "rows", "train", "cached"), [(64, 384, True, False)])
def test_tiles_equal_the_edge_list(slide, size, rows, train, cached):
    """Forward and gradient, with padding, an empty tile and the noise of training, in float64."""
    with jax.enable_x64(True):
        expected = run(slide, "segments", len(slide["x"]), len(slide["x"]), train)
        ours = run(slide, "tiled", size, rows, train, cached)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        scale = np.abs(a).max()
        assert np.abs(a - b).max() < 1e-10 * max(scale, 1.0)
    assert np.abs(expected[0]).max() > 0.1


@pytest.mark.slow
def test_tiles_equal_the_edge_list_in_float32(slide):
    n = len(slide["x"])
    expected = run(slide, "segments", n, n, True, dtype=np.float32)
    ours = run(slide, "tiled", 64, 384, True, dtype=np.float32)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        assert np.abs(a - b).max() < 2e-5 * max(np.abs(a).max(), 1.0)


def test_edge_features_given_or_computed_again(slide):
    given = run(slide, "tiled", 64, 384, False, True, np.float32, gradient=False)
    again = run(slide, "tiled", 64, 384, False, False, np.float32, gradient=False)
    np.testing.assert_allclose(given, again, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_stays_near(slide):
    exact = run(slide, "tiled", 64, 384, False, dtype=np.float32, gradient=False)
    network = dataclasses.replace(NETWORK, dtype="bfloat16")
    coords, n = slide["coords"], len(slide["coords"])
    graph = knn_graph(coords, K)
    tiles = tile(graph, edge_geometry(coords, graph), n, n)
    params = jax.tree.map(lambda a: a.astype(np.float32), slide["params"])
    inputs = (slide[k].astype(np.float32) for k in ("x", "t", "features"))
    rounded = jax.jit(network.apply)(params, *inputs, tiles)
    assert rounded.dtype == np.float32
    assert 1e-4 < np.std(rounded - exact) / np.std(exact) < 0.03
