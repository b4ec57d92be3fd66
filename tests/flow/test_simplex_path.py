"""Paths between noise and shares, by hand."""

import jax
import numpy as np
import pytest

from stfm_jax.flow import simplex_path

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
COUNTS = np.array([4.0, 1.0], np.float32)
LOGITS = np.log(np.array([[0.5, 0.3, 0.2, 1.0], [0.8, 0.2, 1.0, 1.0]], np.float32))
# At no counts shares vary as a Dirichlet of 12, at any number of them.
SPREAD = simplex_path.Spread(np.array([np.log(12.0), 0.0], np.float32), np.float32(0.3))


def line(path="dirichlet", noise="fitted", counts=COUNTS, spread=SPREAD):
    return simplex_path.line(path, noise, LOGITS, counts, spread, MASK)


def test_precision_is_that_of_rates_and_of_the_throw_of_counts():
    """1 / (p + 1) = (1/12 + 1/4) / (1 + 1/12) = 4/13 of four counts; of one count hardly any."""
    found = simplex_path.precision(SPREAD, np.array([4.0, 1.0, 0.0, 1e9], np.float32))
    np.testing.assert_allclose(found, [9 / 4, 0.02, 0.02, 12.0], rtol=1e-4)
    slope = simplex_path.Spread(np.array([1.0, 0.5], np.float32), np.float32(0.3))
    a = np.exp(1.0 + 0.5 * np.log(9.0))
    expected = (1 / a + 1) / (1 / a + 1 / 8) - 1
    np.testing.assert_allclose(
        simplex_path.precision(slope, np.float32([8.0])), expected, rtol=1e-4
    )


def test_fitted_noise_is_about_the_mean_split():
    found = line()
    mean = [[0.5, 0.3, 0.2, 0], [0.8, 0.2, 0, 0]]
    np.testing.assert_allclose(found.mean_0, mean, atol=1e-6)
    np.testing.assert_allclose(found.mean_1, mean, atol=1e-6)
    np.testing.assert_allclose(found.ratio, 1.0)


def test_uniform_noise_is_even_and_its_variance_that_of_a_flat_dirichlet():
    """Var of a share of mean m: m (1 - m) / (p + 1); flat over s children p = s."""
    found = line(noise="uniform")
    np.testing.assert_allclose(found.mean_0, [[1 / 3] * 3 + [0], [0.5, 0.5, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(found.precision, [3.0, 2.0])
    np.testing.assert_allclose(found.ratio, [4.0 / 3.25, 3.0 / 1.02], rtol=1e-4)


def test_log_ratios_have_the_variance_that_was_found():
    found = line("clr")
    np.testing.assert_allclose(found.ratio, 0.3, rtol=1e-6)
    np.testing.assert_array_equal(found.mean_0, 0)
    np.testing.assert_allclose(np.asarray(found.mean_1).sum(axis=1), 0, atol=1e-6)
    assert (np.asarray(found.mean_1)[~MASK] == 0).all()


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_the_linear_part_is_the_regression_of_gaussian_ends(t):
    """x_t = (1 - t) x_0 + t x_1 of independent ends whose variances are 1 : ratio."""
    of = line(noise="uniform")
    x_t = np.array([[0.6, 0.1, 0.3, 0.0], [0.1, 0.9, 0.0, 0.0]], np.float32)
    found = simplex_path.linear(of, x_t, np.full(2, t, np.float32))
    ratio = np.asarray(of.ratio, np.float64)[:, None]
    slope = t * ratio / ((1 - t) ** 2 + t**2 * ratio)
    mean = (1 - t) * np.asarray(of.mean_0) + t * np.asarray(of.mean_1)
    np.testing.assert_allclose(found, of.mean_1 + slope * (x_t - mean), atol=1e-5)


def test_what_is_shown_grows_from_nothing_to_ten_times():
    """Of shares what they are above an even split, in even shares."""
    x_t = np.array([[0.5, 0.25, 0.25, 0.0], [0.5, 0.5, 0.0, 0.0]], np.float32)
    for t, factor in ((0.0, 0.0), (0.1, 0.1), (1.0, 10.0)):
        found = simplex_path.shown("dirichlet", x_t, np.full(2, t, np.float32), MASK)
        expected = factor * np.array([[0.5, -0.25, -0.25, 0], [0, 0, 0, 0]])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        found = simplex_path.shown("clr", x_t, np.full(2, t, np.float32), MASK)
        np.testing.assert_allclose(found, factor * x_t, rtol=1e-4)


def test_logarithms_of_small_shares_are_bounded():
    x = np.array([[0.5, 0.0, 0.5, 7.0], [1.2, -0.2, 7.0, 7.0]], np.float32)
    found = simplex_path.logits_of("dirichlet", x, MASK)
    expected = np.log([[0.5, 1e-3, 0.5, 1.0], [1.2, 1e-3, 1.0, 1.0]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert simplex_path.logits_of("clr", x, MASK) is x
    np.testing.assert_allclose(
        simplex_path.shares("dirichlet", x, MASK), [[0.5, 0, 0.5, 0], [1, 0, 0, 0]], atol=1e-6
    )


def test_half_a_count_stands_for_none():
    ratios = np.array([[0.75, 0.25, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], np.float32)
    found = np.asarray(simplex_path.target("clr", ratios, COUNTS, MASK))
    logs = np.log([3.5, 1.5, 0.5])
    np.testing.assert_allclose(found[0, :3], logs - logs.mean(), rtol=1e-5)
    np.testing.assert_allclose(found[1], [np.log(3) / 2, -np.log(3) / 2, 0, 0], rtol=1e-5)
    assert simplex_path.target("dirichlet", ratios, COUNTS, MASK) is ratios


def test_rows_are_exchanged_within_groups_and_among_the_same_children():
    n = 2 * simplex_path.GROUP + 3
    x_1 = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    mask = np.ones((n, 3), bool)
    mask[::4, 2] = False
    turned = np.arange(n)
    turned[:8], turned[40:44] = [4, 5, 6, 7, 0, 1, 2, 3], [40, 42, 43, 41]
    x_0 = x_1[turned] + 0.01
    found = np.asarray(simplex_path.paired(x_0, x_1, mask))
    np.testing.assert_allclose(found, x_1 + 0.01, atol=1e-6)
    apart = x_0.copy()
    apart[[0, 1]] = x_0[[5, 4]]  # nearest to rows of other children now
    found = np.asarray(simplex_path.paired(apart, x_1, mask))
    assert {tuple(row) for row in found[mask[:, 2]]} == {tuple(row) for row in apart[mask[:, 2]]}
    np.testing.assert_array_equal(found[-3:], apart[-3:])  # less than a group


def test_noise_is_keyed_by_row_and_absent_children_get_none():
    for path in simplex_path.PATHS:
        of = line(path)
        keys = jax.random.split(jax.random.key(0), 2)
        whole = np.asarray(simplex_path.prior(path, keys, of, MASK))
        assert (whole[~MASK] == 0).all()
        other = np.asarray(simplex_path.prior(path, keys[::-1], of, MASK))
        assert np.abs(whole - other).max() > 1e-3
        np.testing.assert_allclose(whole.sum(axis=1), path == "dirichlet", atol=1e-5)
