"""The network in its published form against the independent PyTorch reference."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optional
import pytest

from stfm_jax.data.batching import spacing_units
from stfm_jax.flow.solvers import euler
from stfm_jax.nn.stflow_net import STFlowNet
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.ops.tiles import tile

torch = optional.torch()
pytestmark = pytest.mark.parity

N, F, G, K = 150, 16, 10, 8


def load_reference():
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "reference.py"
    spec = importlib.util.spec_from_file_location("stflow_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()
NETWORK = STFlowNet(
    G, width=32, num_blocks=3, heads=4, dropout=0.0, expression="differences", frames="pca",
    time_scale=1.0,
)  # fmt: skip
apply = jax.jit(NETWORK.apply)


def torch_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = reference.STFlow(F, G, width=32, num_blocks=3, heads=4, dropout=0.0, **changes).eval()
    with torch.no_grad():  # biases and norms too: fresh ones are zeros and ones
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def inputs():
    """A jittered lattice, so that no neighbours tie and no PCA is degenerate."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(N)))
    lattice = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:N]
    coords = spacing_units(100.0 * (lattice + rng.uniform(-0.3, 0.3, (N, 2))))
    return {
        "x": np.log1p(rng.poisson(2.0, (N, G))).astype(np.float32),
        "features": rng.normal(size=(N, F)).astype(np.float32),
        "coords": coords,
    }


def tiles_of(coords, dtype, size=N):
    graph = knn_graph(coords, K)
    return tile(graph, edge_geometry(coords, graph), N, size, dtype)


def run_both(model, inputs, t, dtype):
    """Outputs of the two networks with the torch model's weights."""
    model = model.to(torch.float64 if dtype == np.float64 else torch.float32)
    x, features = inputs["x"].astype(dtype), inputs["features"].astype(dtype)
    with torch.no_grad():
        tensors = (torch.from_numpy(a) for a in (x, np.full(N, t, dtype), features))
        theirs = model(*tensors, torch.from_numpy(inputs["coords"])).numpy()
    with jax.enable_x64(dtype == np.float64):
        params = reference.copy_weights_to_jax(model)
        tiles = tiles_of(inputs["coords"], dtype)
        ours = np.asarray(apply(params, x, np.full(N, t, dtype), features, tiles))
    assert ours.dtype == theirs.dtype == dtype
    return ours, theirs


@pytest.mark.parametrize("graph", ["matrix", "kdtree"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-11)])
def test_forward_agrees(inputs, graph, dtype, tolerance):
    model = torch_model(graph=graph)
    for t in (0.0, 0.37, 0.9):
        ours, theirs = run_both(model, inputs, t, dtype)
        assert theirs.std() > 0.05
        assert np.abs(ours - theirs).max() < tolerance * np.sqrt(np.mean(theirs**2))


def test_state_reaches_the_output_only_through_differences(inputs):
    """Guards the parity above against a state that both sides would ignore."""
    model = torch_model()
    changed = dict(inputs, x=inputs["x"] + np.float32(0.5) * (np.arange(N) % 2)[:, None])
    shifted = dict(inputs, x=inputs["x"] + np.float32(1.0))
    base = run_both(model, inputs, 0.5, np.float64)[0]
    assert np.abs(run_both(model, changed, 0.5, np.float64)[0] - base).max() > 1e-4
    np.testing.assert_allclose(run_both(model, shifted, 0.5, np.float64)[0], base, atol=1e-7)


def test_weights_round_trip():
    model = torch_model(seed=0)
    params = reference.copy_weights_to_jax(model)
    other = torch_model(seed=1)
    reference.copy_weights_from_jax(params, other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    again = reference.copy_weights_to_jax(other)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_weights_of_an_initialised_network():
    """JAX -> torch, with the tree that the network itself makes."""
    network = dataclasses.replace(NETWORK, zero_init=False)
    params = jax.jit(network.init, static_argnums=1)(jax.random.key(3), F)
    model = torch_model()
    reference.copy_weights_from_jax(params, model)
    expected = reference.copy_weights_to_jax(model)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_copy_refuses_other_trees(inputs):
    model = torch_model()
    params = reference.copy_weights_to_jax(model)
    with pytest.raises(ValueError, match="embed_features"):
        reference.copy_weights_from_jax({}, model)
    extra = {**params, "block_9": {"norm": {"bias": np.zeros(2)}}}
    with pytest.raises(ValueError, match="are"):
        reference.copy_weights_from_jax(extra, model)
    wide = {**params, "embed_features": {"kernel": np.zeros((9, 32))}}
    with pytest.raises(ValueError, match="embed_features/kernel"):
        reference.copy_weights_from_jax(wide, model)


def test_parameter_count_is_the_published_one():
    model = reference.STFlow()
    assert sum(p.numel() for p in model.parameters()) == 1_147_724
    network = STFlowNet(50, expression="differences")
    shapes = jax.eval_shape(functools.partial(network.init, num_features=1024), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_147_724


def test_graphs_are_the_same(inputs):
    """No edge of the reference is missed and none is added, when nothing ties."""
    graph = knn_graph(inputs["coords"], K)
    ours = set(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))
    for kind in reference.GRAPHS:
        near = reference.nearest(torch.from_numpy(inputs["coords"]), K, kind).numpy()
        theirs = {(i, int(j)) for i, row in enumerate(near) for j in row}
        assert theirs == ours
    assert len(ours) == N * K


@pytest.mark.parametrize(
    ("times", "evaluations"),
    [(reference.paper_times(5), 5), (reference.published_times(5), 4)],
)
def test_sampler_agrees(inputs, times, evaluations):
    """Same prior draw, same weights; the code's five points are four evaluations."""
    model = torch_model()
    x_0 = reference.published_prior(N, G, torch.Generator().manual_seed(1))
    features, coords = torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["coords"])
    theirs, count = reference.sample(model, x_0, features, coords, times)
    assert count == evaluations

    params = reference.copy_weights_to_jax(model)
    tiles = tiles_of(inputs["coords"], np.float32)

    def denoiser(x, t):
        return apply(params, x, jnp.full(N, t), inputs["features"], tiles)

    ours = jax.jit(lambda x, t: euler(denoiser, x, t))(x_0.numpy(), times.numpy())
    scale = np.sqrt(np.mean(theirs.numpy() ** 2))
    assert np.abs(ours - theirs.numpy()).max() < 2e-5 * scale


def test_published_prior_has_the_moments_it_claims():
    """ZINB of total_count 1: mean mu / 2 and variance (mu + 2 mu^2) / 2 - mean^2, mu = e^0.1."""
    x_0 = reference.published_prior(100_000, 1, torch.Generator().manual_seed(0))
    counts, mu = np.expm1(x_0.double().numpy()), np.exp(0.1)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
    assert abs(counts.mean() - mu / 2) < 0.02
    assert abs(counts.var() - ((mu + 2 * mu**2) / 2 - mu**2 / 4)) < 0.08
    assert abs((counts == 0).mean() - (0.5 + 0.5 / (1 + mu))) < 0.01
