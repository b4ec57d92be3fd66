"""metrics against scipy, brute force, and the properties each score promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toy_fields import fields, grid, smooth

from stfm_jax.errors import InputError
from stfm_jax.ops import metrics

seeds = st.integers(0, 2**31)


# Accuracy


def test_pearson_and_spearman_agree_with_scipy():
    pred, true = fields()
    true[:, 1] = np.round(true[:, 1])  # ties
    for ours, theirs in ((metrics.pearson, stats.pearsonr), (metrics.spearman, stats.spearmanr)):
        expected = [theirs(pred[:, j], true[:, j])[0] for j in range(5)]
        np.testing.assert_allclose(ours(pred, true), expected, atol=1e-12)
    expected = [stats.pearsonr(pred[i], true[i])[0] for i in range(60)]
    np.testing.assert_allclose(metrics.pearson_spot(pred, true), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(1e-2, 1e2), st.floats(-50, 50))
def test_pearson_ignores_scale_and_offset_and_turns_with_the_sign(seed, scale, offset):
    pred, true = fields(seed)
    score = metrics.pearson(pred, true)
    np.testing.assert_allclose(metrics.pearson(scale * pred + offset, true), score, atol=1e-9)
    np.testing.assert_allclose(metrics.pearson(-scale * pred, true), -score, atol=1e-9)
    np.testing.assert_allclose(metrics.spearman(np.exp(pred), true), metrics.spearman(pred, true))


@pytest.mark.parametrize("score", [metrics.pearson, metrics.spearman])
def test_constant_predictions_score_zero_and_constant_genes_are_counted(score):
    pred, true = fields()
    pred[:, 0] = 0.3
    pred[:, 4] = np.float32(0.1) * (1 + 1e-8 * np.arange(60))  # constant but for rounding
    true[:, 1] = 0.0
    pred[:, 2], true[:, 2] = 1.0, 2.0
    values = score(pred, true)
    assert values[0] == 0 and values[4] == 0 and np.isnan(values[[1, 2]]).all() and values[3] > 0
    mean, left_out = metrics.mean_over_genes(values)
    assert left_out == 2 and mean == pytest.approx(values[3] / 3)


def test_mean_over_no_genes_is_nan():
    mean, left_out = metrics.mean_over_genes(np.array([np.nan, np.nan]))
    assert np.isnan(mean) and left_out == 2


def test_errors_per_gene():
    pred = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 0.0]])
    true = np.array([[1.0, 0.0], [1.0, 3.0], [0.0, 3.0]])
    np.testing.assert_allclose(metrics.mse(pred, true), [4 / 3, 14 / 3])
    np.testing.assert_allclose(metrics.mae(pred, true), [2 / 3, 2.0])


def test_correlations_never_pass_one():
    """By rounding alone they would."""
    values = np.random.default_rng(0).normal(size=(30, 500))
    assert metrics.pearson(values, values).max() == 1.0
    assert metrics.pearson(-values, values).min() == -1.0


def test_spots_of_a_gene_that_are_known_are_scored_alone():
    """As by scipy on them; flat where the prediction varies by less than 1e-6 about its mean."""
    pred, true = fields(n=60)
    true[5:30, 0] = np.nan
    pred[:, 1] = np.resize([5e-7, -5e-7], 60)
    pred[:, 2] = np.resize([5e-6, -5e-6], 60)
    true[metrics.LEAST_KNOWN :, 3] = np.nan
    true[metrics.LEAST_KNOWN - 1 :, 4] = np.nan
    found = metrics.pearson_known(pred, true)
    known = ~np.isnan(true)
    for gene in (0, 2, 3):
        rows = known[:, gene]
        expected = stats.pearsonr(pred[rows, gene], true[rows, gene])[0]
        assert found[gene] == pytest.approx(expected, abs=1e-6)
    assert found[1] == 0 and np.isnan(found[4])


def test_pearson_is_exact_on_float32_with_a_large_mean():
    pred, true = fields(n=500)
    shifted = (true + 1000).astype(np.float32)
    np.testing.assert_allclose(
        metrics.pearson(pred, shifted), metrics.pearson(pred, true), atol=1e-4
    )


@pytest.mark.parametrize(("pred", "true"), [((5, 3), (5, 4)), ((0, 4), (0, 4)), ((5,), (5,))])
def test_wrong_shapes_are_refused(pred, true):
    with pytest.raises(ValueError, match="expected prediction and truth"):
        metrics.pearson(np.zeros(pred), np.zeros(true))


def test_a_prediction_with_nan_is_refused_not_scored():
    pred, true = fields()
    pred[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 NaN"):
        metrics.mse(pred, true)


# Structure


def test_gene_structure_agrees_with_corrcoef():
    pred, true = fields(g=6)
    true[:, 4] = 1.0
    keep = [0, 1, 2, 3, 5]
    above = np.triu_indices(5, k=1)
    a, b = (np.corrcoef(v[:, keep].T)[above] for v in (pred, true))
    assert metrics.gene_structure(pred, true) == pytest.approx(stats.pearsonr(a, b)[0])
    assert metrics.gene_structure(true, true) == pytest.approx(1.0)


def test_gene_structure_of_constant_predictions_is_zero():
    pred, true = fields()
    assert metrics.gene_structure(np.zeros_like(pred), true) == 0.0
    assert np.isnan(metrics.gene_structure(pred[:, :2], true[:, :2]))


def test_morans_i_agrees_with_the_double_sum():
    coords, senders, receivers = grid(6)
    rng = np.random.default_rng(0)
    expr = smooth(coords, 4, rng, noise=0.3)
    weights = np.zeros((36, 36))
    np.add.at(weights, (receivers, senders), 1.0)
    z = expr - expr.mean(axis=0)
    expected = [
        36 / weights.sum() * sum(weights[i, j] * c[i] * c[j] for i in range(36) for j in range(36))
        for c in (z / np.sqrt((z**2).sum(axis=0))).T
    ]
    np.testing.assert_allclose(metrics.morans_i(expr, senders, receivers), expected)


def test_morans_i_tells_smooth_from_random_and_constant():
    coords, senders, receivers = grid()
    rng = np.random.default_rng(0)
    expr = np.stack(
        [smooth(coords, 1, rng)[:, 0], rng.normal(size=len(coords)), np.ones(len(coords))], axis=1
    )
    values = metrics.morans_i(expr, senders, receivers)
    assert values[0] > 0.8 and abs(values[1]) < 0.15 and np.isnan(values[2])
    with pytest.raises(ValueError, match="empty"):
        metrics.morans_i(expr, [], [])


def test_moran_agreement_charges_smoothness_where_a_correlation_would_not():
    coords, senders, receivers = grid()
    rng = np.random.default_rng(0)
    field = smooth(coords, 20, rng)
    noise = rng.normal(size=field.shape) * np.linspace(0.3, 1.5, 20)
    true, twin = field + noise, field + rng.permutation(noise)
    agreement = [metrics.moran_agreement(p, true, senders, receivers) for p in (true, twin, field)]
    assert agreement[0] == pytest.approx(1.0)
    assert agreement[1] > 0.8 > 0.3 > agreement[2]
    assert metrics.moran_agreement(0 * true, true, senders, receivers) == 0.0


def test_moran_agreement_is_lins_concordance():
    coords, senders, receivers = grid()
    rng = np.random.default_rng(1)
    true, pred = (smooth(coords, 8, rng, noise=0.5) for _ in range(2))
    a, b = (metrics.morans_i(v, senders, receivers) for v in (pred, true))
    r = stats.pearsonr(a, b)[0]
    expected = 2 * r * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    assert metrics.moran_agreement(pred, true, senders, receivers) == pytest.approx(expected)


def section_of_a_stack(seed=0, g=20):
    """Expression [144, g], what neighbours measured, and another draw of the same, given those.

    Genes differ in how much of them neighbouring sections share.
    """
    coords, _, _ = grid()
    rng = np.random.default_rng(seed)
    shared, share = smooth(coords, g, rng), np.linspace(0.2, 2.0, g)
    around = share * shared + 0.1 * rng.normal(size=shared.shape)
    true, twin = (share * shared + rng.normal(size=shared.shape) for _ in range(2))
    return true, around, twin


def test_consistency_charges_too_little_and_too_much_likeness():
    true, around, twin = section_of_a_stack()
    ignorant = np.random.default_rng(9).permutation(true)
    predictions = true, twin, ignorant, around
    scores = [metrics.consistency(p, true, around) for p in predictions]
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] > 0.8 > 0.3 > max(scores[2:])
    assert metrics.consistency(0 * true, true, around) == 0.0


def test_consistency_is_lins_concordance():
    true, around, pred = section_of_a_stack(seed=1, g=8)
    pred = pred + 0.5 * around
    a, b = (
        np.array([stats.pearsonr(v[:, j], around[:, j])[0] for j in range(8)]) for v in (pred, true)
    )
    r = stats.pearsonr(a, b)[0]
    expected = 2 * r * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    assert 0 < expected < 0.95
    assert metrics.consistency(pred, true, around) == pytest.approx(expected)
    assert metrics.consistency(3 * pred + 1, true, 2 * around - 1) == pytest.approx(expected)


def test_genes_without_variation_and_consistency():
    """Left out where truth or neighbours are constant; like nothing where the prediction is."""
    true, around, pred = section_of_a_stack(g=6)
    kept = [1, 2, 4, 5]
    for constant in (true, around):
        constant[:, 0] = 1.5
    around[:, 3] = 0.0
    expected = metrics.consistency(pred[:, kept], true[:, kept], around[:, kept])
    assert metrics.consistency(pred, true, around) == pytest.approx(expected)
    flat = pred.copy()
    flat[:, 4] = 2.0
    unlike = pred.copy()
    unlike[:, 4] = np.random.default_rng(0).normal(size=len(pred))
    unlike[:, 4] -= around[:, 4] * np.polyfit(around[:, 4], unlike[:, 4], 1)[0]  # uncorrelated
    scores = [metrics.consistency(p, true, around) for p in (flat, unlike)]
    assert scores[0] == pytest.approx(scores[1]) and scores[0] < expected
    assert np.isnan(metrics.consistency(pred[:, :2], true[:, :2], around[:, :2]))
    with pytest.raises(ValueError, match="expected prediction and truth"):
        metrics.consistency(pred[:, :3], true, around)


# Draws


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 12))
def test_crps_agrees_with_all_pairs(seed, m):
    rng = np.random.default_rng(seed)
    draws, true = rng.poisson(2.0, (m, 7, 3)).astype(np.float32), rng.normal(size=(7, 3))
    pairs = np.abs(draws[:, None] - draws[None]).sum(axis=(0, 1)) / (m * (m - 1))
    expected = (np.abs(draws - true).mean(axis=0) - 0.5 * pairs).mean(axis=0)
    np.testing.assert_allclose(metrics.crps(draws, true), expected, atol=1e-12)


def test_crps_is_unbiased_in_the_number_of_draws():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20_000, 1))
    exact = 1 / np.sqrt(np.pi)  # E of CRPS(N(0, 1), y) for y ~ N(0, 1)
    for m in (2, 5, 40):
        draws = rng.normal(size=(m, 20_000, 1))
        assert metrics.crps(draws, true)[0] == pytest.approx(exact, abs=0.02)


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    draws, true = rng.normal(size=(99, 31, 2)), rng.normal(size=(31, 2))
    whole = metrics.crps(draws, true), metrics.coverage(draws, true)
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 99 * 2 * 7)
    np.testing.assert_allclose(metrics.crps(draws, true), whole[0])
    # The generator is consumed in another order: equal up to the randomised ranks' noise.
    np.testing.assert_allclose(metrics.coverage(draws, true), whole[1], atol=0.1)


def zero_inflated(rng, shape):
    return np.log1p(rng.negative_binomial(1, 0.4, shape) * (rng.random(shape) < 0.4))


@pytest.mark.parametrize("sampler", [zero_inflated, lambda rng, shape: rng.normal(size=shape)])
@pytest.mark.parametrize("level", [0.5, 0.8])
def test_coverage_of_a_perfect_sampler_is_nominal(sampler, level):
    rng = np.random.default_rng(0)
    draws, true = sampler(rng, (99, 4000, 2)), sampler(rng, (4000, 2))
    np.testing.assert_allclose(metrics.coverage(draws, true, level), level, atol=0.025)


def test_coverage_breaks_ties_although_the_float_types_differ():
    rng = np.random.default_rng(0)
    draws = zero_inflated(rng, (99, 3000, 1)).astype(np.float32)
    np.testing.assert_allclose(
        metrics.coverage(draws, zero_inflated(rng, (3000, 1))), 0.8, atol=0.03
    )


def test_coverage_shows_over_and_underconfidence_and_bias():
    rng = np.random.default_rng(0)
    draws, true = rng.normal(size=(99, 2000, 1)), rng.normal(size=(2000, 1))
    assert metrics.coverage(0.3 * draws, true)[0] < 0.4
    assert metrics.coverage(3.0 * draws, true)[0] > 0.95
    assert metrics.coverage(draws + 4.0, true)[0] < 0.05
    assert metrics.coverage(np.zeros_like(draws), np.ones_like(true))[0] == 0.0


def test_too_few_draws_are_refused():
    with pytest.raises(InputError, match="at least 99 draws, found 98"):
        metrics.coverage(np.zeros((98, 2, 1)), np.zeros((2, 1)))
    with pytest.raises(InputError, match="at least 2 draws"):
        metrics.crps(np.zeros((1, 2, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="expected draws"):
        metrics.crps(np.zeros((3, 2, 2)), np.zeros((2, 1)))


def test_quantiles_have_rank_p_times_m_plus_one():
    draws = np.random.default_rng(0).permutation(np.arange(1.0, 10.0))[:, None, None]
    low, middle = metrics.quantiles(draws.astype(np.float32), (0.1, 0.55))
    assert low.dtype == np.float32 and low[0, 0] == 1.0
    assert middle[0, 0] == pytest.approx(5.5)
    assert metrics.quantiles(draws, 0.9).shape == (1, 1)


def test_coverage_of_several_levels_is_that_of_each():
    rng = np.random.default_rng(3)
    draws, true = rng.normal(size=(99, 40, 3)), rng.normal(size=(40, 3))
    levels = (0.2, 0.5, 0.9)
    found = metrics.coverage(draws, true, levels)
    assert found.shape == (3, 3)
    for level, covered in zip(levels, found, strict=True):
        np.testing.assert_array_equal(covered, metrics.coverage(draws, true, level))
