"""HisToGene, TRIPLEX and LongNet: padding, the order of spots, dropout, sizes; they can learn."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slide_problems import NETWORKS, G, padded, problem, random_params

from stfm_jax.nn import triplex
from stfm_jax.nn.histogene import HisToGene
from stfm_jax.nn.longnet import DILATIONS, SEGMENTS, LongNet, dilated_attention, score_bytes
from stfm_jax.nn.triplex import TRIPLEX
from stfm_jax.ops import metrics

N = 50
apply = jax.jit(lambda network, *args: network.apply(*args), static_argnums=0)


def params_of(name, given):
    return random_params(NETWORKS[name], given.arguments(name))


def assert_alike(a, b, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5, **tolerance), a, b)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dropped", [False, True])
def test_padding_changes_nothing(name, dropped):
    """Nor does it in training: dropout is by spot."""
    given = problem(N)
    more, params = padded(given, 14), params_of(name, given)
    keys = jax.random.split(jax.random.key(2), N + 14)
    found, with_padding = (
        apply(NETWORKS[name], params, *a.arguments(name), keys[: len(a.x)] if dropped else None)
        for a in (given, more)
    )
    assert_alike(found, jax.tree.map(lambda a: a[:N], with_padding))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(with_padding))


@pytest.mark.parametrize("name", NETWORKS)
def test_results_go_with_their_spots(name):
    order = np.random.default_rng(3).permutation(N)
    given, other = problem(N), problem(N, order)
    params = params_of(name, given)
    found, again = (apply(NETWORKS[name], params, *a.arguments(name)) for a in (given, other))
    assert_alike(jax.tree.map(lambda a: a[order], found), again)


@pytest.mark.parametrize("name", NETWORKS)
def test_spots_see_each_other_and_their_places(name):
    given = problem(N)
    params, network = params_of(name, given), NETWORKS[name]
    found = jax.tree.leaves(apply(network, params, *given.arguments(name)))[0]
    x = given.x.copy()
    x[0] += 3.0
    changed = apply(network, params, *given._replace(x=x).arguments(name))
    assert (np.abs(jax.tree.leaves(changed)[0] - found).max(axis=1) > 1e-4).all()
    place = given.place[:, ::-1]
    turned = given._replace(
        place=place, around=given.around[:, ::-1], present=given.present[:, ::-1]
    )
    elsewhere = apply(network, params, *turned.arguments(name))
    assert np.abs(jax.tree.leaves(elsewhere)[0] - found).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_of_the_keys(name):
    given = problem(N)
    params, network = params_of(name, given), NETWORKS[name]
    keys = jax.random.split(jax.random.key(0), N)
    still, once, again = (
        jax.tree.leaves(apply(network, params, *given.arguments(name), k))[0]
        for k in (None, keys, keys)
    )
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - still).max() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_set_has_finite_gradients(name):
    """Devices that a step has no slide for are given one without spots."""
    given = jax.tree.map(jnp.zeros_like, problem(N))
    params = params_of(name, problem(N))

    def total(params):
        found = NETWORKS[name].apply(params, *given.arguments(name))
        return sum(jnp.sum(a) for a in jax.tree.leaves(found))

    for gradient in jax.tree.leaves(jax.jit(jax.grad(total))(params)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("network", "features", "published"),
    [
        # What projects two further branches here, of which the published network has one.
        (TRIPLEX(250), 512, 18_117_784 + 2 * (512 * 512 + 512)),
        (HisToGene(785), 3 * 112**2, 106_648_337),
        # With the heads to genes.
        (LongNet(G), 1536, 86_330_880 + (768 * G + G) + 1536 * G),
    ],
)
def test_published_sizes(network, features, published):
    """Parameters as they were counted of the public code."""
    name = type(network).__name__.lower()
    given = problem(N)._replace(x=np.zeros((N, features), np.float32))
    shapes = jax.eval_shape(network.init, jax.random.key(0), *given.arguments(name))
    assert sum(np.prod(a.shape) for a in jax.tree.leaves(shapes)) == published


def learnt(name, changes, steps):
    """Pearson, mean over genes, on the 64 spots that a network was trained on."""
    network, given = NETWORKS[name].clone(**changes), problem(64)
    y = np.random.default_rng(5).normal(size=(64, G)).astype(np.float32)
    arguments, optimizer = jax.tree.map(jnp.asarray, given.arguments(name)), optax.adam(3e-3)
    params = jax.jit(network.init)(jax.random.key(0), *arguments)

    def loss(params):
        found = network.apply(params, *arguments)
        return jnp.mean(triplex.loss(found, y) if name == "triplex" else jnp.square(found - y))

    @jax.jit
    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    trained, _ = jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))
    found = jax.tree.leaves(apply(network, trained, *arguments))[0]
    return metrics.mean_over_genes(metrics.pearson(np.asarray(found), y))[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_overfits_64_spots(name):
    """Of random expression, which nothing but memory can give."""
    assert learnt(name, {}, 0) < 0.5
    assert learnt(name, {}, 300) > 0.95


def test_triplex_loss():
    """Of one gene: truth for all four predictions, the fused one for its three branches."""
    predictions = triplex.Predictions(*(jnp.array([[a]]) for a in (1.0, 2.0, 3.0, 5.0)))
    expected = 1 + 0.7 * (4 + 9 + 25) + 0.3 * (1 + 4 + 16)
    np.testing.assert_allclose(triplex.loss(predictions, jnp.zeros((1, 1))), [expected], rtol=1e-6)


def test_undilated_attention_is_plain():
    """Of less than a segment, every branch of dilation 1 is the same softmax over all."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 20, 4, 8)).astype(np.float32)
    found = dilated_attention(q, k, v, np.ones(20, bool), (32, 64), (1, 1))
    np.testing.assert_allclose(found, jax.nn.dot_product_attention(q, k, v), atol=1e-6)


def test_score_bytes():
    """Of 10,000 spots, in GB: .66 for the first branch, 1.1 for the second [BASELINES]."""
    assert (SEGMENTS[0], DILATIONS[0]) == (1024, 1)
    first, second = (10 * 1024**2 * 16 * 4, 2 * 2896**2 * 16 * 4)
    assert first / 1e9 == pytest.approx(0.66, abs=0.02)
    assert second / 1e9 == pytest.approx(1.1, abs=0.05)
    rest = sum(math.ceil(10_001 / r) ** 2 for r in DILATIONS[2:]) * 16 * 4
    assert score_bytes(10_000, 16) == first + second + rest
