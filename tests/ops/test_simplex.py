"""Splitting counts: every count is accounted for, whatever the shares."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stfm_jax.ops import simplex


@st.composite
def problems(draw):
    """Counts [p, g], shares [p, g, s] and mask [p, 1, s] with a child at least."""
    p, g, s = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 7))
    counts = draw(hnp.arrays(np.int64, (p, g), elements=st.integers(0, 10**6)))
    size = st.floats(0, 1e6) | st.sampled_from([0.0, 1.0, 1 / 3, 1e-30])
    shares = draw(hnp.arrays(np.float64, (p, g, s), elements=size))
    mask = draw(hnp.arrays(bool, (p, 1, s)))
    mask[np.arange(p), 0, draw(hnp.arrays(np.int64, p, elements=st.integers(0, s - 1)))] = True
    return counts, shares, mask


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_nothing_is_lost_or_made(problem, seed):
    counts, _, mask = problem
    real = simplex.split(*problem)
    np.testing.assert_allclose(real.astype(np.float32).sum(-1), counts, rtol=1e-6)
    nearest = simplex.split_largest_remainder(*problem)
    drawn = simplex.split_multinomial(np.random.default_rng(seed), *problem)
    for parts in (real, nearest, drawn):
        assert parts.min() >= 0 and not parts[np.broadcast_to(~mask, parts.shape)].any()
        assert not parts[counts == 0].any()
    for parts in (nearest, drawn):
        assert parts.dtype == np.int64
        np.testing.assert_array_equal(parts.sum(-1), counts)
    assert (np.abs(nearest - real) < 1 + 1e-6).all()


def test_an_only_child_gets_everything():
    counts, shares = np.array([7, 0]), np.zeros((2, 3))
    mask = np.array([[False, True, False]] * 2)
    rng = np.random.default_rng(0)
    for parts in (
        simplex.split(counts, shares, mask),
        simplex.split_largest_remainder(counts, shares, mask),
        simplex.split_multinomial(rng, counts, shares, mask),
    ):
        np.testing.assert_array_equal(parts, [[0, 7, 0], [0, 0, 0]])


def test_the_largest_remainders_are_rounded_up():
    parts = simplex.split_largest_remainder(
        np.array([10, 3]), np.array([[0.26, 0.55, 0.19], [1.0, 1.0, 0.0]]), np.ones((2, 3), bool)
    )
    np.testing.assert_array_equal(parts, [[3, 5, 2], [2, 1, 0]])


def test_multinomial_draws_have_the_moments_of_theirs():
    shares, n = np.array([0.5, 0.0, 0.2, 0.3]), 20
    rng, mask = np.random.default_rng(0), np.ones(4, bool)
    drawn = simplex.split_multinomial(rng, np.full(200_000, n), shares, mask)
    covariance = n * (np.diag(shares) - np.outer(shares, shares))
    np.testing.assert_allclose(drawn.mean(axis=0), n * shares, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.06)
