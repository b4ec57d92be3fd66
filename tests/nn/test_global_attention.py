"""The global attention of a block: silent at first, by slide, as its weights say."""

import functools

import jax
import numpy as np
import pytest

from stfm_jax.nn.global_attention import GlobalAttention

N, D, HEADS, GROUPS = 12, 8, 2, 3


@pytest.fixture
def problem():
    """h, mask, group."""
    rng = np.random.default_rng(0)
    h = rng.normal(1.0, 2.0, (N, D)).astype(np.float32)
    return h, rng.uniform(size=N) < 0.8, np.arange(N, dtype=np.int32) % GROUPS


@functools.partial(jax.jit, static_argnums=(0, 5))
def apply(module, params, h, mask, group, num_groups=GROUPS):
    return module.apply(params, h, mask, group, num_groups)


@functools.partial(jax.jit, static_argnums=0)
def fresh(module, h, mask):
    return module.init(jax.random.key(0), h, mask)


def noisy(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype(a.dtype), params)


def layer_norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def by_loops(h, mask, group, p):
    """Receiver by receiver, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)["params"]
    projected = layer_norm(h.astype(np.float64), p["norm"]) @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    q, k, v = np.split(projected, 3, axis=-1)
    weigh, out = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))), np.zeros((N, D))
    for i in np.flatnonzero(mask):
        seen = mask & (group == group[i])
        for head in np.split(np.arange(D), HEADS):
            weights = weigh(k[seen][:, head]) @ weigh(q[i, head])
            out[i, head] = weights / weights.sum() @ v[seen][:, head]
    return out @ p["out"]["kernel"] + p["out"]["bias"]


def test_equals_loops(problem):
    module = GlobalAttention(HEADS)
    params = noisy(fresh(module, *problem[:2]))
    expected, mask = by_loops(*problem, params), problem[1]
    np.testing.assert_allclose(apply(module, params, *problem)[mask], expected[mask], atol=1e-5)


def test_starts_silent(problem):
    """And is trained nevertheless: the projection has a gradient."""
    module = GlobalAttention(HEADS)
    params = fresh(module, *problem[:2])
    out = apply(module, params, *problem)
    assert out.shape == (N, D)
    np.testing.assert_array_equal(out, 0.0)
    gradient = jax.jit(jax.grad(lambda params: apply(module, params, *problem).sum()))(params)
    assert np.abs(gradient["params"]["out"]["kernel"]).max() > 0.1
    loud = GlobalAttention(HEADS, zero_init=False)
    assert np.abs(apply(loud, fresh(loud, *problem[:2]), *problem)).max() > 0.1


@pytest.mark.parametrize("changed", ["another group", "masked"])
def test_only_unmasked_rows_of_the_group_are_seen(problem, changed):
    h, mask, group = problem
    module = GlobalAttention(HEADS, zero_init=False)
    params = fresh(module, h, mask)
    rows = (group == 1) if changed == "another group" else ~mask
    assert rows.any()
    other = np.where(rows[:, None], 10.0 * h[::-1], h)
    before, after = (np.asarray(apply(module, params, x, mask, group)) for x in (h, other))
    np.testing.assert_array_equal(after[~rows], before[~rows])
    together = apply(module, params, other, mask, np.zeros_like(group), 1)
    assert np.abs(together - after)[mask].max() > 0.01


def test_bfloat16_is_close(problem):
    params = noisy(fresh(GlobalAttention(HEADS), *problem[:2]))
    exact, rounded = (
        apply(GlobalAttention(HEADS, dtype), params, *problem) for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1
