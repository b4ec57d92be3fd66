"""The split attention MLP, the frame average and the block against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from stfm_jax.nn.blocks import AttentionLogits, Edges, FrameFeatures, SpatialBlock
from stfm_jax.nn.mlp import ExpressionHead, LayerNorm, SwiGLU, TimeEmbedding

N, E, D, HEADS, G = 10, 40, 16, 2, 5
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


def double(params):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]


@pytest.fixture(scope="module")
def edges():
    rng = np.random.default_rng(0)
    return Edges(
        senders=rng.integers(0, N, E).astype(np.int32),
        receivers=np.sort(np.repeat(np.arange(N), E // N)).astype(np.int32),
        mask=np.ones(E, bool),
        pca=rng.normal(size=(E, 2)).astype(np.float32),
        edge=rng.normal(size=(E, 2)).astype(np.float32),
        distance=rng.uniform(0.5, 2.0, E).astype(np.float32),
        blend=rng.uniform(0.0, 1.0, E).astype(np.float32),
    )


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


def test_split_attention_equals_the_concatenation(edges):
    q, k, y = normal(N, HEADS, DH), normal(N, HEADS, DH, seed=2), normal(N, G, seed=3)
    frames = normal(E, HEADS, DH, seed=4)
    init = jax.jit(AttentionLogits().init)
    params = noisy(init(jax.random.key(0), q, k, frames, y, edges))
    i, j = edges.receivers, edges.senders
    difference = np.repeat((y[j] - y[i])[:, None], HEADS, axis=1)
    pair = np.concatenate([q[i], k[j], frames, difference], axis=-1).astype(np.float64)
    logits = jax.jit(AttentionLogits().apply)(params, q, k, frames, y, edges)
    assert logits.shape == (E, HEADS)
    np.testing.assert_allclose(logits, swiglu(pair, double(params))[..., 0], atol=1e-4)


init_frames = jax.jit(FrameFeatures(D).init)
apply_frames = jax.jit(FrameFeatures.apply, static_argnums=0)


def frame_features(edges, frames="blended", params=None):
    params = params or noisy(init_frames(jax.random.key(0), edges))
    return np.asarray(apply_frames(FrameFeatures(D, frames), params, edges)), params


def test_pca_branch_is_the_mean_over_four_frames(edges):
    ours, params = frame_features(edges, "pca")
    inputs = [
        np.concatenate([edges.pca * signs, edges.distance[:, None]], axis=1).astype(np.float64)
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    ]
    expected = np.mean([swiglu(x, double(params)) for x in inputs], axis=0)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_blend_goes_from_the_edges_own_frame_to_pca(edges):
    blended, params = frame_features(edges)
    pca, _ = frame_features(edges, "pca", params)
    at_one, _ = frame_features(edges._replace(blend=np.ones(E, np.float32)), params=params)
    at_zero, _ = frame_features(edges._replace(blend=np.zeros(E, np.float32)), params=params)
    np.testing.assert_allclose(at_one, pca, atol=1e-5)
    inputs = [
        np.concatenate([edges.edge * signs, edges.distance[:, None]], axis=1).astype(np.float64)
        for signs in ((1, 1), (1, -1))
    ]
    expected = np.mean([swiglu(x, double(params)) for x in inputs], axis=0)
    np.testing.assert_allclose(at_zero, expected, atol=1e-4)
    weight = edges.blend[:, None]
    np.testing.assert_allclose(blended, weight * pca + (1 - weight) * at_zero, atol=1e-4)


def test_arbitrary_signs_do_not_matter(edges):
    base, params = frame_features(edges)
    flipped = edges._replace(pca=edges.pca * [-1, 1], edge=edges.edge * [1, -1])
    np.testing.assert_allclose(frame_features(flipped, params=params)[0], base, atol=1e-5)
    wrong = edges._replace(edge=edges.edge * [-1, 1])  # towards or away from the neighbour
    assert np.abs(frame_features(wrong, params=params)[0] - base).max() > 0.1


def test_radial_frames_see_the_distance_alone(edges):
    base, params = frame_features(edges, "radial")
    other = edges._replace(pca=edges.pca + 1, edge=edges.edge - 1, blend=1 - edges.blend)
    np.testing.assert_array_equal(frame_features(other, "radial", params)[0], base)
    farther = edges._replace(distance=edges.distance + 1)
    assert np.abs(frame_features(farther, "radial", params)[0] - base).max() > 0.1


BLOCK = SpatialBlock(HEADS, G, dropout=0.5, zero_init=False)


def init_block(edges):
    h, y, frames = normal(N, D), normal(N, G, seed=2), normal(E, D, seed=3)
    init = jax.jit(BLOCK.init, static_argnums=5)
    return noisy(init(jax.random.key(0), h, y, frames, edges, False), scale=0.1), h, y, frames


run_block = jax.jit(BLOCK.apply, static_argnums=5)


def test_block_equals_loops_over_spots(edges):
    params, h, y, frames = init_block(edges)
    tokens, expression = run_block(params, h, y, frames, edges, False)
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
            logits = swiglu(np.stack(rows), p["logits"])[:, 0]
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            values.append(weights @ v[js, part])
            shapes.append(weights @ frames[mine, part])
        expected.append(h[i] + swiglu(np.concatenate(values + shapes), p["mix"]))
    expected = np.stack(expected)
    expected = expected + swiglu(expected, p["feed_forward"])
    np.testing.assert_allclose(tokens, expected, atol=1e-3)
    np.testing.assert_allclose(expression, head(expected, p["head"]), atol=1e-3)


def test_masked_edges_do_not_matter(edges):
    """Also where all edges of a spot are masked: it keeps its own token, finitely."""
    params, h, y, frames = init_block(edges)
    mask = edges.mask.copy()
    mask[1::3] = False
    mask[-4:] = False  # all of the last spot's
    masked = edges._replace(mask=mask)
    base = run_block(params, h, y, frames, masked, False)
    rng = np.random.default_rng(9)
    senders = np.where(mask, edges.senders, rng.integers(0, N, E)).astype(np.int32)
    garbage = np.where(mask[:, None], frames, 1e3).astype(np.float32)
    other = run_block(params, h, y, garbage, masked._replace(senders=senders), False)
    for a, b in zip(base, other, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-6)
    full = run_block(params, h, y, frames, edges, False)
    assert np.abs(full[0] - base[0]).max() > 1e-3


def test_gradients_are_finite_with_padding(edges):
    params, h, y, frames = init_block(edges)
    masked = edges._replace(mask=np.arange(E) < E // 2)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient_of(params, frames):
        return jnp.sum(BLOCK.apply(params, h, y, frames, masked, False)[1][: N // 2] ** 2)

    gradients = gradient_of(params, frames)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients[1][E // 2 :], 0.0)


def test_dropout_in_training_alone(edges):
    params, h, y, frames = init_block(edges)

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(run_block(params, h, y, frames, edges, True, rngs=rngs)[0])

    np.testing.assert_array_equal(train(0), train(0))
    assert np.abs(train(0) - train(1)).max() > 0.01
