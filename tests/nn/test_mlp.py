"""Products in bfloat16, the projection of a norm that is never written out, and keyed noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.nn.mlp import Dense, LayerNorm, NormedProjection, dropout, gaussian_noise, matmul

MANY = 4097  # ones: bfloat16 sums stop at 256, and bfloat16 cannot hold it


def test_bfloat16_is_summed_in_float32():
    x, kernel = np.ones((1, MANY), np.float32), np.ones((MANY, 1), np.float32)
    stuck = functools.reduce(lambda total, one: total + one, np.ones(MANY, jnp.bfloat16))
    assert float(stuck) == 256.0  # that the test below can fail
    for product in (matmul, jax.jit(matmul, static_argnums=2)):
        y = product(x, kernel, "bfloat16")
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, MANY)


def products_of(function, *arguments):
    """(types of the operands, type of the sums) of every product that is traced."""
    equations = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return [
        ({str(v.aval.dtype) for v in e.invars}, str(e.outvars[0].aval.dtype))
        for e in equations
        if e.primitive.name == "dot_general"
    ]


def test_what_is_asked_of_the_device():
    """XLA's CPU code may keep more bits than asked for, so that results alone do not tell."""
    x, kernel = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    forward = functools.partial(matmul, dtype="bfloat16")
    assert products_of(forward, x, kernel) == [({"bfloat16"}, "float32")]
    backward = jax.grad(lambda x, kernel: jnp.sum(forward(x, kernel)), argnums=(0, 1))
    assert {sums for _, sums in products_of(backward, x, kernel)} == {"float32"}
    exact = functools.partial(matmul, dtype="float32")
    assert products_of(exact, x, kernel) == [({"float32"}, "float32")]


def test_bfloat16_gradients_are_summed_in_float32():
    """Summed over rows, and over the outputs; rounded once, to 8 bits, at the end."""
    x, kernel = np.ones((MANY, 1), np.float32), np.ones((1, MANY), np.float32)
    loss = lambda x, kernel: jnp.sum(matmul(x, kernel, "bfloat16"))  # noqa: E731
    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel):
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, MANY, rtol=2.0**-8)


def test_bfloat16_rounds_the_operands_alone():
    """Equal to the products of rounded operands, with bias and parameters in float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 300)).astype(np.float32)
    module = Dense(7, dtype="bfloat16")
    params = jax.jit(module.init)(jax.random.key(0), x)
    params = {"params": {**params["params"], "bias": np.float32(1e-3 + np.arange(7))}}
    assert {str(np.asarray(a).dtype) for a in jax.tree.leaves(params)} == {"float32"}
    y = jax.jit(module.apply)(params, x)
    rounded, kernel = (
        np.asarray(a).astype(jnp.bfloat16).astype(np.float64)
        for a in (x, params["params"]["kernel"])
    )
    expected = rounded @ kernel + params["params"]["bias"]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, atol=1e-5)
    exact = x.astype(np.float64) @ params["params"]["kernel"] + params["params"]["bias"]
    assert 1e-4 < np.abs(y - exact).max() < 0.05


def test_float32_rounds_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 300)).astype(np.float32)
    module = Dense(7, use_bias=False)
    params = jax.jit(module.init)(jax.random.key(0), x)
    assert set(params["params"]) == {"kernel"}
    expected = x.astype(np.float64) @ np.asarray(params["params"]["kernel"], np.float64)
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-5)


def projection_params(d, dtype, rng):
    shapes = {"scale": d, "bias": d, "kernel": (d, 1), "shift": 1}
    return {"params": {name: rng.normal(size=n).astype(dtype) for name, n in shapes.items()}}


def normed_projection(x, p):
    """LN, then Linear."""
    x, p = x.astype(np.float64), {name: a.astype(np.float64) for name, a in p["params"].items()}
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (normed * p["scale"] + p["bias"]) @ p["kernel"][:, 0] + p["shift"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_normed_projection_is_norm_then_linear(dtype, tolerance):
    rng = np.random.default_rng(0)
    x = (rng.normal(0.7, 2.0, (5, 9, 3, 64))).astype(dtype)
    params = projection_params(64, dtype, rng)
    with jax.enable_x64(dtype == np.float64):
        fresh = jax.jit(NormedProjection().init)(jax.random.key(0), x)
        y = np.asarray(jax.jit(NormedProjection().apply)(params, x))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)
    assert y.shape == x.shape[:-1] and y.dtype == dtype
    expected = normed_projection(x, params)
    np.testing.assert_allclose(y, expected, atol=tolerance * np.abs(expected).max())


def test_normed_projection_has_the_gradients_of_norm_then_linear():
    rng = np.random.default_rng(1)
    x, params = rng.normal(0.7, 2.0, (6, 16)), projection_params(16, np.float64, rng)

    def split(params, x):
        p = params["params"]
        normed = LayerNorm().apply({"params": {n: p[n] for n in ("scale", "bias")}}, x)
        return jnp.sum(jnp.sin(normed @ p["kernel"][:, 0] + p["shift"]))

    def joined(params, x):
        return jnp.sum(jnp.sin(NormedProjection().apply(params, x)))

    with jax.enable_x64(True):
        ours, theirs = (
            jax.jit(jax.grad(f, argnums=(0, 1)))(params, x) for f in (joined, split)
        )  # fmt: skip
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_normed_projection_of_a_constant_row_is_finite():
    params = projection_params(16, np.float32, np.random.default_rng(0))
    both = jax.jit(jax.value_and_grad(lambda x: NormedProjection().apply(params, x)[0]))
    y, gradient = both(np.full((1, 16), 1e3, np.float32))
    assert np.isfinite(y) and np.isfinite(gradient).all()


N, D = 400, 50
NOISES = {
    "dropout": functools.partial(dropout, rate=0.3),
    "gaussian": functools.partial(gaussian_noise, std=0.5),
}


def keys_of(n=N, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


def values(n=N):
    return 1.0 + np.random.default_rng(0).uniform(size=(n, D)).astype(np.float32)


def run(name, keys, x, tag=3):
    return np.asarray(NOISES[name](keys, tag, x=x))


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_a_row_follows_from_its_key_and_tag(name):
    """Not from the other rows, from their number or from where the row stands."""
    keys, x = keys_of(), values()
    base = run(name, keys, x)
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(run(name, keys[order], x[order]), base[order])
    np.testing.assert_array_equal(run(name, keys[7:20], x[7:20]), base[7:20])
    other = keys.at[5].set(jax.random.key(99))
    changed = (run(name, other, x) != base).any(axis=1)
    np.testing.assert_array_equal(changed, np.arange(N) == 5)
    same = run(name, jnp.broadcast_to(keys[:1], N), np.broadcast_to(x[:1], x.shape))
    np.testing.assert_array_equal(same, np.broadcast_to(base[:1], x.shape))


@pytest.mark.parametrize("name", NOISES)
def test_rows_and_tags_have_noise_of_their_own(name):
    keys, ones = keys_of(), np.ones((N, D), np.float32)
    noise = [run(name, keys, ones, tag) for tag in (0, 1, 16)]
    deviation = [(a - a.mean()) / a.std() for a in noise]
    limit = 4.5 / np.sqrt(N * D)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((deviation[a] * deviation[b]).mean()) < limit
    assert abs((deviation[0][1:] * deviation[0][:-1]).mean()) < limit


@pytest.mark.parametrize("name", NOISES)
def test_no_noise_without_keys_or_strength(name):
    x = values()
    assert NOISES[name](None, 3, x=x) is x
    none = {"dropout": {"rate": 0.0}, "gaussian": {"std": 0.0}}[name]
    assert NOISES[name](keys_of(), 3, x=x, **none) is x


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_dropout_keeps_its_share_and_scales_it(rate):
    x = values()
    y = np.asarray(dropout(keys_of(), 3, rate, x))
    kept = y != 0
    error = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 4.5 * error / np.sqrt(N * D)
    assert np.abs(kept.mean(axis=0) - (1 - rate)).max() < 4.5 * error / np.sqrt(N)
    assert np.abs(kept.mean(axis=1) - (1 - rate)).max() < 4.5 * error / np.sqrt(D)
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("std", [0.1, 0.8])
def test_gaussian_noise_is_added_with_its_deviation(std):
    x = values()
    noise = (np.asarray(gaussian_noise(keys_of(), 3, std, x)) - x) / std
    size = N * D
    assert abs(noise.mean()) < 4.5 / np.sqrt(size)
    assert abs(noise.std() - 1.0) < 4.5 / np.sqrt(2 * size)
    assert abs((noise**4).mean() - 3.0) < 4.5 * np.sqrt(96 / size)
    assert abs(np.corrcoef(noise.ravel(), x.ravel())[0, 1]) < 4.5 / np.sqrt(size)
    other = np.asarray(gaussian_noise(keys_of(), 3, std, 0.0 * x)) / std
    np.testing.assert_allclose(other, noise, atol=1e-4)
