"""The spatial-block bootstrap against resampled spots, and what its interval promises."""

import numpy as np
import pytest
from toy_fields import fields, grid, smooth

from stfm_jax.errors import InputError
from stfm_jax.ops import bootstrap, metrics


def test_blocks_are_compact_tiles_of_the_wanted_number():
    coords, *_ = grid(20)
    blocks = bootstrap.spatial_blocks(coords)
    assert set(blocks) == set(range(blocks.max() + 1)) and 16 <= blocks.max() + 1 <= 25
    for block in range(blocks.max() + 1):
        assert np.ptp(coords[blocks == block], axis=0).max() <= 200.0 * 6
    assert bootstrap.spatial_blocks(coords, side_um=2000.0).max() + 1 == 4
    with pytest.raises(InputError, match="positive"):
        bootstrap.spatial_blocks(coords, side_um=0.0)


@pytest.mark.parametrize("shape", ["disc", "strip", "islands", "hexagons"])
def test_default_blocks_suit_any_outline(shape):
    rng = np.random.default_rng(0)
    coords = rng.uniform(-1, 1, (900, 2)) * 5000
    if shape == "disc":
        coords = coords[np.linalg.norm(coords, axis=1) < 4000]
    elif shape == "strip":
        coords[:, 1] *= 0.02
    elif shape == "islands":
        coords = coords[np.abs(coords).min(axis=1) > 2000]
    else:
        row, column = np.divmod(np.arange(900), 30)
        coords = np.stack([100.0 * column + 50 * (row % 2), 86.6 * row], axis=1)
    assert 16 <= bootstrap.spatial_blocks(coords).max() + 1 <= 25


def brute_force_difference(a, b, true, blocks, chosen):
    spots = np.concatenate([np.flatnonzero(blocks == block) for block in chosen])
    score = [np.nanmean(metrics.pearson(p[spots], true[spots])) for p in (a, b)]
    return score[0] - score[1]


def test_block_sums_give_the_difference_of_resampled_spots():
    coords, *_ = grid()
    a, true = fields(n=144)
    b = fields(seed=1, n=144)[0] + 100.0
    b[:, 2] = 7.0
    true[:, 3] = 0.0
    blocks = bootstrap.spatial_blocks(coords, 800.0)
    sums, _ = bootstrap._block_sums(bootstrap.PairedFold(a, b, true, blocks))
    rng = np.random.default_rng(0)
    for _ in range(5):
        chosen = rng.integers(0, blocks.max() + 1, blocks.max() + 1)
        times = np.bincount(chosen, minlength=blocks.max() + 1)[None].astype(float)
        expected = brute_force_difference(a, b, true, blocks, chosen)
        assert bootstrap._difference(sums, times)[0] == pytest.approx(expected, abs=1e-10)


def test_bootstrap_reports_the_plain_difference_and_sees_a_real_one():
    coords, *_ = grid(20)
    rng = np.random.default_rng(0)
    true = rng.normal(size=(400, 10))
    a, b = (true + s * rng.normal(size=true.shape) for s in (0.8, 1.2))
    fold = (a, b, true, bootstrap.spatial_blocks(coords))
    result = bootstrap.paired_bootstrap([fold], 500, seed=1)
    plain = np.mean(metrics.pearson(a, true) - metrics.pearson(b, true))
    assert result.difference == pytest.approx(plain)
    assert 0 < result.low < plain < result.high and result.share_positive == 1.0
    assert bootstrap.paired_bootstrap([fold], 500, seed=1) == result
    mirrored = bootstrap.paired_bootstrap([(b, a, *fold[2:])], 500, seed=1)
    assert mirrored.difference == pytest.approx(-plain) and mirrored.high < 0


def test_bootstrap_of_equal_methods_holds_zero_and_more_folds_narrow_it():
    coords, *_ = grid(20)
    blocks, rng = bootstrap.spatial_blocks(coords), np.random.default_rng(3)
    folds = []
    for _ in range(4):
        true = rng.normal(size=(400, 6))
        a, b = (true + rng.normal(size=true.shape) for _ in range(2))
        folds.append((a, b, true, blocks))
    one, four = (bootstrap.paired_bootstrap(f, 400) for f in (folds[:1], folds))
    assert four.low < 0 < four.high
    assert four.high - four.low < 0.75 * (one.high - one.low)
    same = bootstrap.paired_bootstrap([(a, a, true, blocks)], 50)
    assert same.difference == same.low == same.high == same.share_positive == 0.0


def test_a_single_gene_is_compared():
    """Resamples by hand: those of two blocks that are drawn whole."""
    a, true = fields(n=40)
    b, blocks = fields(seed=1, n=40)[0], np.repeat([0, 1], 20)
    parts = a[:, :1], b[:, :1], true[:, :1]
    result = bootstrap.paired_bootstrap([(*parts, blocks)], 400)
    rows = [blocks == 0, blocks == 1, blocks < 2]

    def difference(rows):
        one, other, of = (part[rows, 0] for part in parts)
        return np.corrcoef(one, of)[0, 1] - np.corrcoef(other, of)[0, 1]

    found = sorted(map(difference, rows))
    chances = [0.25, 0.25, 0.5]
    assert result.difference == pytest.approx(difference(rows[2]))
    assert (result.low, result.high) == pytest.approx((found[0], found[-1]))
    expected = sum(p for p, of in zip(chances, rows, strict=True) if difference(of) > 0)
    assert result.share_positive == pytest.approx(expected, abs=0.1)


def test_seeds_share_the_resampled_tissue():
    """Three fits of one tissue are no three tissues: alike, they give the interval of one."""
    coords, *_ = grid(20)
    blocks, rng = bootstrap.spatial_blocks(coords), np.random.default_rng(0)
    true = rng.normal(size=(400, 6))
    a, b, c, d = (true + rng.normal(size=true.shape) for _ in range(4))
    one = bootstrap.paired_bootstrap([(a, b, true, blocks)], 400)
    alike = bootstrap.paired_bootstrap([(np.stack([a] * 3), np.stack([b] * 3), true, blocks)], 400)
    np.testing.assert_allclose(alike, one)
    other = bootstrap.paired_bootstrap([(c, d, true, blocks)], 400)
    both = bootstrap.paired_bootstrap([(np.stack([a, c]), np.stack([b, d]), true, blocks)], 400)
    assert both.difference == pytest.approx((one.difference + other.difference) / 2)
    assert both != one


def test_blocks_widen_the_interval_of_errors_that_are_correlated_in_space():
    coords, *_ = grid(20)
    rng = np.random.default_rng(0)
    true, a, b = (smooth(coords, 3, rng, noise=0.2) for _ in range(3))
    widths = []
    for blocks in (np.arange(400), bootstrap.spatial_blocks(coords)):
        result = bootstrap.paired_bootstrap([(true + a, true + b, true, blocks)], 400)
        widths.append(result.high - result.low)
    assert widths[1] > 1.5 * widths[0]


def test_bootstrap_resamples_within_slides():
    slide_of_block = np.array([0, 0, 0, 1, 1])
    times = bootstrap._resample_blocks(slide_of_block, 50, np.random.default_rng(0))
    assert (times[:, :3].sum(axis=1) == 3).all() and (times[:, 3:].sum(axis=1) == 2).all()
    true = np.random.default_rng(0).normal(size=(20, 2))
    blocks, slides = np.repeat([0, 1, 0, 1], 5), np.repeat(["x", "y"], 10)
    sums, owner = bootstrap._block_sums(bootstrap.PairedFold(true, true, true, blocks, slides))
    assert len(owner) == 4 and (sums["n"] == 5).all()


def test_bootstrap_of_a_single_block_is_refused():
    a, true = fields()
    with pytest.raises(InputError, match="two blocks"):
        bootstrap.paired_bootstrap([(a, a, true, np.zeros(60, int))])
    with pytest.raises(ValueError, match="no folds"):
        bootstrap.paired_bootstrap([])


def test_bootstrap_survives_genes_that_few_spots_express():
    a, true = fields()
    true[:, 0] = 0.0
    true[7, 0] = 1.0
    true[:, 1] = 2.0
    result = bootstrap.paired_bootstrap([(a, 0 * a, true, np.arange(60) // 6)], 200)
    assert np.isfinite(result).all() and result.difference > 0
    assert np.isnan(bootstrap.paired_bootstrap([(a, a, 0 * true, np.arange(60) // 6)], 20)).all()


def test_spots_that_are_not_scored_are_as_if_absent():
    """NaN in the truth of a gene: that gene's Pearson over the other spots."""
    a, true = fields()
    blocks = np.arange(60) // 6
    holes = true.copy()
    holes[np.random.default_rng(1).random(true.shape) < 0.3] = np.nan
    b = 0.5 * a + np.random.default_rng(2).normal(size=a.shape)
    result = bootstrap.paired_bootstrap([(a, b, holes, blocks)], 50)
    scores = [metrics.pearson_known(pred, holes) for pred in (a, b)]
    for gene, score in enumerate(scores[0]):
        known = ~np.isnan(holes[:, gene])
        expected = np.corrcoef(a[known, gene], true[known, gene])[0, 1]
        assert score == pytest.approx(expected, abs=1e-9)
    assert result.difference == pytest.approx(float(np.mean(scores[0] - scores[1])), abs=1e-9)
