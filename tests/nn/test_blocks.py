"""The split attention MLP, the frame average and the block against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from stfm_jax.nn.blocks import AttentionLogits, EdgeFeatures, FrameFeatures, SpatialBlock
from stfm_jax.nn.mlp import ExpressionHead, LayerNorm, SwiGLU, TimeEmbedding
from stfm_jax.ops.frames import EdgeGeometry
from stfm_jax.ops.tiles import Edges

N, R, K, D, HEADS, G = 10, 14, 4, 16, 2, 5  # receivers, rows, edges of a receiver
E = N * K
FORMS = ["list", "table"]
DH = D // HEADS


def noisy(params, seed=0, scale=0.3):
    """Parameters none of which is zero or one, so that each must be used rightly."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + scale * rng.normal(size=a.shape).astype(a.dtype), params)


def layer_norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def gate(x):
    a, b = np.split(x, 2, axis=-1)
    return a / (1 + np.exp(-a)) * b


def swiglu(x, p):
    """Both ways the weights of W1 are stored."""
    w1 = p["w1"] if "w1" in p else {"kernel": p["w1_kernel"], "bias": p["w1_bias"]}
    return dense(layer_norm(gate(dense(x, w1)), p["norm"]), p["w2"])


def attention_mlp(x, p):
    """SwiGLU to one number, as its weights are stored."""
    w1, project = {"kernel": p["w1_kernel"], "bias": p["w1_bias"]}, p["project"]
    normed = layer_norm(gate(dense(x, w1)), project)
    return dense(normed, {"kernel": project["kernel"][:, 0], "bias": project["shift"]})


def double(params):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]


@pytest.fixture(scope="module")
def edges():
    """A list; every receiver has as many, so that it is a table too."""
    rng = np.random.default_rng(0)
    return Edges(
        senders=rng.integers(0, R, E).astype(np.int32),
        receivers=np.repeat(np.arange(N), K).astype(np.int32),
        mask=np.ones(E, bool),
    )


@pytest.fixture(scope="module")
def geometry():
    rng = np.random.default_rng(0)
    return EdgeGeometry(
        pca=rng.normal(size=(E, 2)).astype(np.float32),
        edge=rng.normal(size=(E, 2)).astype(np.float32),
        distance=rng.uniform(0.5, 2.0, E).astype(np.float32),
        blend=rng.uniform(0.0, 1.0, E).astype(np.float32),
    )


def in_form(form, values):
    """An array over the edge list, or with a row per receiver."""
    return values if form == "list" else values.reshape(N, K, *values.shape[1:])


def edges_in_form(form, edges):
    if form == "list":
        return edges
    return Edges(in_form(form, edges.senders), np.arange(N)[:, None], in_form(form, edges.mask))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layer_norm_swiglu_and_head():
    x = normal(N, D) + 3.0
    for module, reference in (
        (LayerNorm(), layer_norm),
        (SwiGLU(12, 7), swiglu),
        (ExpressionHead(G, zero_init=False), head),
    ):
        params = noisy(jax.jit(module.init)(jax.random.key(0), x))
        expected = reference(x.astype(np.float64), double(params))
        np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-4)


def head(x, p):
    h = layer_norm(dense(x, p["w1"]), p["norm"])
    return dense(0.5 * h * (1 + erf(h / np.sqrt(2))), p["w2"])


def test_layer_norm_of_a_constant_row_is_finite():
    params = LayerNorm().init(jax.random.key(0), jnp.ones((1, D)))
    gradient = jax.jit(jax.grad(lambda x: LayerNorm().apply(params, x)[0, 0]))
    gradient = gradient(jnp.full((1, D), 1e3))
    assert np.isfinite(gradient).all()


def test_zero_init_head_is_silent():
    params = jax.jit(ExpressionHead(G, zero_init=True).init)(jax.random.key(0), normal(N, D))
    np.testing.assert_array_equal(jax.jit(ExpressionHead(G, True).apply)(params, normal(N, D)), 0.0)


def test_time_embedding():
    t = np.array([0.0, 0.25, 1.0], np.float32)
    for scale in (1.0, 1000.0):
        module = TimeEmbedding(D, scale)
        params = noisy(jax.jit(module.init)(jax.random.key(0), t))
        apply = jax.jit(module.apply)
        p = double(params)
        argument = scale * t[:, None].astype(np.float64) * 10000.0 ** (-np.arange(128) / 128)
        x = dense(np.concatenate([np.cos(argument), np.sin(argument)], axis=1), p["w1"])
        expected = dense(x / (1 + np.exp(-x)), p["w2"])
        np.testing.assert_allclose(apply(params, t), expected, atol=2e-3)
        np.testing.assert_allclose(apply(params, t[1]), expected[1], atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_split_attention_equals_the_concatenation(edges, form):
    q, k, y = normal(N, HEADS, DH), normal(R, HEADS, DH, seed=2), normal(R, G, seed=3)
    frames = normal(E, HEADS, DH, seed=4)
    features = EdgeFeatures(in_form(form, frames.reshape(E, D)))
    inputs = q, k, features, y, edges_in_form(form, edges)
    params = noisy(jax.jit(AttentionLogits().init)(jax.random.key(0), *inputs))
    i, j = edges.receivers, edges.senders
    difference = np.repeat((y[j] - y[i])[:, None], HEADS, axis=1)
    pair = np.concatenate([q[i], k[j], frames, difference], axis=-1).astype(np.float64)
    logits = jax.jit(AttentionLogits().apply)(params, *inputs)
    expected = attention_mlp(pair, double(params))
    assert expected.shape == (E, HEADS)
    np.testing.assert_allclose(logits, in_form(form, expected), atol=1e-4)


init_frames = jax.jit(FrameFeatures(D).init)
apply_frames = jax.jit(FrameFeatures.apply, static_argnums=0)


def frame_features(geometry, frames="blended", params=None):
    params = params or noisy(init_frames(jax.random.key(0), geometry))
    return np.asarray(apply_frames(FrameFeatures(D, frames), params, geometry)), params


def in_frame(offset, distance):
    """What the frame network sees of an edge."""
    return np.concatenate([offset, distance[:, None]], axis=1).astype(np.float64)


def test_pca_branch_is_the_mean_over_four_frames(geometry):
    ours, params = frame_features(geometry, "pca")
    inputs = [
        in_frame(geometry.pca * signs, geometry.distance)
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    ]
    expected = np.mean([swiglu(x, double(params)) for x in inputs], axis=0)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_blend_goes_from_the_edges_own_frame_to_pca(geometry):
    blended, params = frame_features(geometry)
    pca, _ = frame_features(geometry, "pca", params)
    at_one, _ = frame_features(geometry._replace(blend=np.ones(E, np.float32)), params=params)
    at_zero, _ = frame_features(geometry._replace(blend=np.zeros(E, np.float32)), params=params)
    np.testing.assert_allclose(at_one, pca, atol=1e-5)
    inputs = [in_frame(geometry.edge * signs, geometry.distance) for signs in ((1, 1), (1, -1))]
    expected = np.mean([swiglu(x, double(params)) for x in inputs], axis=0)
    np.testing.assert_allclose(at_zero, expected, atol=1e-4)
    weight = geometry.blend[:, None]
    np.testing.assert_allclose(blended, weight * pca + (1 - weight) * at_zero, atol=1e-4)


def test_arbitrary_signs_do_not_matter(geometry):
    base, params = frame_features(geometry)
    flipped = geometry._replace(pca=geometry.pca * [-1, 1], edge=geometry.edge * [1, -1])
    np.testing.assert_allclose(frame_features(flipped, params=params)[0], base, atol=1e-5)
    wrong = geometry._replace(edge=geometry.edge * [-1, 1])  # towards or away from the neighbour
    assert np.abs(frame_features(wrong, params=params)[0] - base).max() > 0.1


def test_radial_frames_see_the_distance_alone(geometry):
    base, params = frame_features(geometry, "radial")
    other = geometry._replace(
        pca=geometry.pca + 1, edge=geometry.edge - 1, blend=1 - geometry.blend
    )
    np.testing.assert_array_equal(frame_features(other, "radial", params)[0], base)
    farther = geometry._replace(distance=geometry.distance + 1)
    assert np.abs(frame_features(farther, "radial", params)[0] - base).max() > 0.1


def test_frames_of_a_table_are_those_of_the_list(geometry):
    """Whatever the leading axes: a list [e] or tiles [p, T, K]."""
    base, params = frame_features(geometry)
    tiles = jax.tree.map(lambda a: a.reshape(2, N // 2, K, *a.shape[1:]), geometry)
    np.testing.assert_allclose(
        frame_features(tiles, params=params)[0], base.reshape(2, N // 2, K, D), atol=1e-6
    )


BLOCK = SpatialBlock(HEADS, G, dropout=0.5, zero_init=False)
run_block = jax.jit(BLOCK.apply, static_argnums=5)


def init_block(edges):
    h, y, frames = normal(R, D), normal(R, G, seed=2), normal(E, D, seed=3)
    init = jax.jit(BLOCK.init, static_argnums=5)
    params = init(jax.random.key(0), h, y, EdgeFeatures(frames), edges, N)
    return noisy(params, scale=0.1), h, y, frames


def run(form, params, h, y, frames, edges, keys=None):
    """The block over an edge list, done in either form."""
    features = EdgeFeatures(in_form(form, frames))
    inputs = h, y, features, edges_in_form(form, edges), N, keys
    return [np.asarray(a) for a in run_block(params, *inputs)]


@pytest.mark.parametrize("form", FORMS)
def test_block_equals_loops_over_spots(edges, form):
    """Receivers are the first rows; the others are looked at alone."""
    params, h, y, frames = init_block(edges)
    tokens, expression = run(form, params, h, y, frames, edges)
    assert tokens.shape == (N, D) and expression.shape == (N, G)
    assert (edges.senders >= N).any()
    p, h, y, frames = double(params), *(a.astype(np.float64) for a in (h, y, frames))
    q, k, v = np.split(dense(layer_norm(h, p["norm"]), p["qkv"]), 3, axis=1)
    expected = []
    for i in range(N):
        mine = np.flatnonzero(edges.receivers == i)
        js = edges.senders[mine]
        values, shapes = [], []
        for a in range(HEADS):
            part = slice(a * DH, (a + 1) * DH)
            rows = [
                np.concatenate([q[i, part], k[j, part], frames[e, part], y[j] - y[i]])
                for e, j in zip(mine, js, strict=True)
            ]
            logits = attention_mlp(np.stack(rows), p["logits"])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            values.append(weights @ v[js, part])
            shapes.append(weights @ frames[mine, part])
        expected.append(h[i] + swiglu(np.concatenate(values + shapes), p["mix"]))
    expected = np.stack(expected)
    expected = expected + swiglu(expected, p["feed_forward"])
    np.testing.assert_allclose(tokens, expected, atol=1e-3)
    np.testing.assert_allclose(expression, head(expected, p["head"]), atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_masked_edges_do_not_matter(edges, form):
    """Also where all edges of a spot are masked: it keeps its own token, finitely."""
    params, h, y, frames = init_block(edges)
    mask = edges.mask.copy()
    mask[1::3] = False
    mask[-K:] = False  # all of the last spot's
    masked = edges._replace(mask=mask)
    base = run(form, params, h, y, frames, masked)
    rng = np.random.default_rng(9)
    senders = np.where(mask, edges.senders, rng.integers(0, R, E)).astype(np.int32)
    garbage = np.where(mask[:, None], frames, 1e3).astype(np.float32)
    other = run(form, params, h, y, garbage, masked._replace(senders=senders))
    for a, b in zip(base, other, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-6)
    full = run(form, params, h, y, frames, edges)
    assert np.abs(full[0] - base[0]).max() > 1e-3
    listed = run("list", params, h, y, frames, masked)
    np.testing.assert_allclose(base[0], listed[0], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_with_padding(edges, form):
    params, h, y, frames = init_block(edges)
    masked = edges_in_form(form, edges._replace(mask=np.arange(E) < E // 2))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient_of(params, frames):
        head = BLOCK.apply(params, h, y, EdgeFeatures(in_form(form, frames)), masked, N)[1]
        return jnp.sum(head**2)  # of spots without edges too

    gradients = gradient_of(params, frames)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert np.abs(gradients[1][: E // 2]).max() > 0
    np.testing.assert_array_equal(gradients[1][E // 2 :], 0.0)


def test_dropout_in_training_alone(edges):
    """By the keys of the spots: another key changes the spot's own output and no other's."""
    params, h, y, frames = init_block(edges)

    def train(keys):
        return run("table", params, h, y, frames, edges, keys)[0]

    keys, others = (jax.random.split(jax.random.key(seed), N) for seed in (0, 1))
    base = train(keys)
    np.testing.assert_array_equal(train(keys), base)
    changed = np.abs(train(others) - base).max(axis=1)
    assert changed.min() > 0.01
    changed = np.abs(train(keys.at[3].set(others[3])) - base).max(axis=1)
    np.testing.assert_array_equal(changed > 0.01, np.arange(N) == 3)
    np.testing.assert_allclose(np.delete(changed, 3), 0.0, atol=1e-5)
    assert np.abs(run("table", params, h, y, frames, edges)[0] - base).max() > 0.01
